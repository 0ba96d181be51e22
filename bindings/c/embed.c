/* How a server or a window embeds the library: a thread of ours steps, the main thread watches and may cancel. Here it
 * cancels a long answer after two steps, or on Ctrl-C, and asks something else with the same context: embed MODEL.gguf */
#include <mmada.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>

/* What the two threads share. */
struct job {
    mmada_generation *generation;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    size_t steps;
    int ended;
    mmada_status status;
    mmada_error *error;
};

/* What the signal handler cancels. Set before the handler is, and not freed while it is. */
static const mmada_generation *interruptible;

static void on_interrupt(int number) {
    (void)number;
    mmada_generation_cancel(interruptible);
}

static void *work(void *argument) {
    struct job *job = argument;
    mmada_step step;
    int ended = 0;

    mmada_step_init(&step, sizeof step);
    while (!ended) {
        mmada_error *error = NULL;
        mmada_status status = mmada_generation_step(job->generation, &step, &error);
        pthread_mutex_lock(&job->lock);
        job->steps += status == MMADA_OK;
        job->status = status;
        job->error = error;
        job->ended = ended = status != MMADA_OK || step.done;
        pthread_cond_signal(&job->changed);
        pthread_mutex_unlock(&job->lock);
    }
    return NULL;
}

/* Begins a question, steps it in a thread, and cancels it after `limit` steps. Returns what it ended with. */
static mmada_status run(mmada_context *context, const char *question, const mmada_text_options *options, size_t limit) {
    struct job job = {NULL, PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, MMADA_OK, NULL};
    mmada_message message = {NULL, MMADA_NUL_TERMINATED, NULL, MMADA_ROLE_USER, 0};
    mmada_buffer *answer = NULL;
    pthread_t thread;

    message.content = question;
    job.status = mmada_context_begin_text(context, options, &message, 1, &job.generation, &job.error);
    if (job.status == MMADA_OK) {
        interruptible = job.generation;
        signal(SIGINT, on_interrupt);
        if (pthread_create(&thread, NULL, work, &job)) {
            mmada_generation_free(job.generation);
            fprintf(stderr, "embed: no thread could be started\n");
            return MMADA_INTERNAL_ERROR;
        }
        pthread_mutex_lock(&job.lock);
        while (!job.ended && job.steps < limit) {
            pthread_cond_wait(&job.changed, &job.lock);
        }
        pthread_mutex_unlock(&job.lock);
        mmada_generation_cancel(job.generation); /* harmless where it has ended */
        pthread_join(thread, NULL);
        signal(SIGINT, SIG_DFL);
    }
    if (job.status == MMADA_OK && mmada_generation_answer(job.generation, &answer, &job.error) == MMADA_OK) {
        printf("%s\n", mmada_buffer_text(answer));
        mmada_buffer_free(answer);
    } else if (job.status == MMADA_CANCELLED) {
        printf("cancelled\n");
    } else {
        fprintf(stderr, "embed: %s\n", mmada_error_message(job.error));
    }
    mmada_error_free(job.error);
    mmada_generation_free(job.generation);
    return job.status;
}

int main(int argc, char **argv) {
    mmada_error *error = NULL;
    mmada_model *model = NULL;
    mmada_context *context = NULL;
    mmada_text_options slow;
    int failed = 1;

    if (argc < 2) {
        fprintf(stderr, "usage: embed MODEL.gguf\n");
        return 2;
    }
    if (mmada_model_open(argv[1], MMADA_NUL_TERMINATED, NULL, &model, &error) ||
        mmada_context_new(model, NULL, &context, &error) ||
        mmada_text_options_init(&slow, sizeof slow, model, 0, 0, &error)) {
        fprintf(stderr, "embed: %s\n", mmada_error_message(error));
        mmada_error_free(error);
    } else {
        /* Long enough that it cannot end by itself before it is cancelled: no token that would end it may be chosen. */
        mmada_model_info info;
        uint32_t never[2];
        mmada_model_info_init(&info, sizeof info);
        mmada_model_get_info(model, &info, NULL);
        never[0] = info.eos_id;
        never[1] = info.eot_id;
        slow.forbid = never;
        slow.forbid_count = 2;
        slow.gen_length = slow.block_length = slow.steps = 128;
        failed = run(context, "Tell me everything.", &slow, 2) != MMADA_CANCELLED ||
                 run(context, "What is 17 + 25?", NULL, (size_t)-1) != MMADA_OK;
    }
    mmada_context_free(context);
    mmada_model_free(model);
    return failed;
}
