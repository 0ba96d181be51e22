/* Loads the library, uses it and unloads it, a hundred times: unload LIBRARY MODEL. Not linked with it. */
#include <mmada.h>

#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition); \
            exit(1); \
        } \
    } while (0)

extern char **environ;

static void *library;
static const char *library_path, *model_path;

/* ISO C has no conversion from an object pointer to a function pointer. */
#define LOOK_UP(variable, name) \
    do { \
        *(void **)&(variable) = dlsym(library, name); \
        CHECK(variable); \
    } while (0)

static void *use(void *unused) {
    mmada_status (*open)(const char *, size_t, const mmada_open_options *, mmada_model **, mmada_error **);
    mmada_status (*make)(const mmada_model *, const mmada_context_options *, mmada_context **, mmada_error **);
    mmada_status (*begin)(const mmada_context *, const mmada_text_options *, const mmada_message *, size_t,
                          mmada_generation **, mmada_error **);
    mmada_status (*step)(mmada_generation *, mmada_step *, mmada_error **);
    void (*free_generation)(mmada_generation *);
    void (*free_context)(mmada_context *);
    void (*free_model)(mmada_model *);
    mmada_model *model = NULL;
    mmada_context *context = NULL;
    mmada_generation *generation = NULL;
    mmada_message message = {"Hello", MMADA_NUL_TERMINATED, NULL, MMADA_ROLE_USER, 0};

    LOOK_UP(open, "mmada_model_open");
    LOOK_UP(make, "mmada_context_new");
    LOOK_UP(begin, "mmada_context_begin_text");
    LOOK_UP(step, "mmada_generation_step");
    LOOK_UP(free_generation, "mmada_generation_free");
    LOOK_UP(free_context, "mmada_context_free");
    LOOK_UP(free_model, "mmada_model_free");
    CHECK(open(model_path, MMADA_NUL_TERMINATED, NULL, &model, NULL) == MMADA_OK);
    CHECK(make(model, NULL, &context, NULL) == MMADA_OK);
    CHECK(begin(context, NULL, &message, 1, &generation, NULL) == MMADA_OK);
    CHECK(step(generation, NULL, NULL) == MMADA_OK);
    free_generation(generation);
    free_context(context);
    free_model(model);
    return unused;
}

static size_t threads(void) {
    DIR *folder = opendir("/proc/self/task");
    size_t count = 0;
    CHECK(folder);
    while (readdir(folder)) {
        count++;
    }
    closedir(folder);
    return count;
}

/* Whether no others are left; the kernel lists a thread for a moment after it was joined. */
static int only(size_t count) {
    struct timespec moment = {0, 1000000};
    int tries;
    for (tries = 0; threads() != count && tries < 20000; tries++) {
        nanosleep(&moment, NULL);
    }
    return threads() == count;
}

/* What signals do now, as far as it can be compared. */
static void handlers(void *out[NSIG]) {
    int number;
    for (number = 1; number < NSIG; number++) {
        struct sigaction action;
        memset(&action, 0, sizeof action);
        out[number] = NULL;
        if (sigaction(number, NULL, &action) == 0) {
            memcpy(&out[number], &action.sa_handler, sizeof action.sa_handler);
        }
    }
}

static int is_loaded(void) {
    void *still = dlopen(library_path, RTLD_NOW | RTLD_NOLOAD);
    if (still) {
        dlclose(still);
    }
    return still != NULL;
}

static void once(int in_a_thread) {
    pthread_t thread;
    library = dlopen(library_path, RTLD_NOW | RTLD_LOCAL);
    CHECK(library);
    if (in_a_thread) {
        CHECK(pthread_create(&thread, NULL, use, NULL) == 0 && pthread_join(thread, NULL) == 0);
    } else {
        use(NULL);
    }
    CHECK(dlclose(library) == 0);
}

int main(int argc, char **argv) {
    void *before[NSIG], *after[NSIG];
    char **variables = environ;
    size_t alone = threads(), i, count = 0;

    CHECK(argc == 3);
    library_path = argv[1];
    model_path = argv[2];
    memset(before, 0, sizeof before);
    memset(after, 0, sizeof after);
    handlers(before);
    while (environ[count]) {
        count++;
    }
    /* in a thread that ends: the library is gone every time */
    for (i = 0; i < 50; i++) {
        once(1);
        CHECK(!is_loaded());
        CHECK(only(alone));
    }
    /* in this thread, whose variables the system keeps the library for */
    for (i = 0; i < 50; i++) {
        once(0);
        CHECK(only(alone));
    }
    handlers(after);
    CHECK(memcmp(before, after, sizeof before) == 0);
    CHECK(environ == variables);
    for (i = 0; environ[i]; i++) {
    }
    CHECK(i == count);
    return 0;
}
