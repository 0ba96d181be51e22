// Names of the driver's statuses.
#include <cctype>

#include "driver.h"

namespace driver {
namespace {

struct Error {
    CUresult number;
    bool sticky;
    const char* name;
};
const Error ERRORS[] = {
    {0, false, "CUDA_SUCCESS"},
    {1, false, "CUDA_ERROR_INVALID_VALUE"},
    {2, false, "CUDA_ERROR_OUT_OF_MEMORY"},
    {3, false, "CUDA_ERROR_NOT_INITIALIZED"},
    {100, false, "CUDA_ERROR_NO_DEVICE"},
    {101, false, "CUDA_ERROR_INVALID_DEVICE"},
    {200, false, "CUDA_ERROR_INVALID_IMAGE"},
    {201, false, "CUDA_ERROR_INVALID_CONTEXT"},
    {209, false, "CUDA_ERROR_NO_BINARY_FOR_GPU"},
    {214, true, "CUDA_ERROR_ECC_UNCORRECTABLE"},
    {218, false, "CUDA_ERROR_INVALID_PTX"},
    {222, false, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"},
    {400, false, "CUDA_ERROR_INVALID_HANDLE"},
    {401, false, "CUDA_ERROR_ILLEGAL_STATE"},
    {500, false, "CUDA_ERROR_NOT_FOUND"},
    {600, false, "CUDA_ERROR_NOT_READY"},
    {700, true, "CUDA_ERROR_ILLEGAL_ADDRESS"},
    {701, false, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"},
    {702, true, "CUDA_ERROR_LAUNCH_TIMEOUT"},
    {710, true, "CUDA_ERROR_ASSERT"},
    {714, true, "CUDA_ERROR_HARDWARE_STACK_ERROR"},
    {715, true, "CUDA_ERROR_ILLEGAL_INSTRUCTION"},
    {716, true, "CUDA_ERROR_MISALIGNED_ADDRESS"},
    {717, true, "CUDA_ERROR_INVALID_ADDRESS_SPACE"},
    {718, true, "CUDA_ERROR_INVALID_PC"},
    {719, true, "CUDA_ERROR_LAUNCH_FAILED"},
    {801, false, "CUDA_ERROR_NOT_SUPPORTED"},
    {900, false, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
    {901, false, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"},
    {905, false, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION"},
    {906, false, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT"},
    {907, false, "CUDA_ERROR_CAPTURED_EVENT"},
    {908, false, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD"},
    {999, false, "CUDA_ERROR_UNKNOWN"},
};

const Error* error(CUresult number) {
    for (const Error& error : ERRORS) {
        if (error.number == number) return &error;
    }
    return nullptr;
}

}  // namespace

bool is_sticky(CUresult number) {
    const Error* found = error(number);
    return found && found->sticky;
}

}  // namespace driver

EXPORT CUresult cuGetErrorName(CUresult number, const char** text) {
    if (!text) return INVALID_VALUE;
    const driver::Error* found = driver::error(number);
    *text = found ? found->name : nullptr;
    return found ? SUCCESS : INVALID_VALUE;
}

/// The words of the name: NVIDIA's own sentences are not needed.
EXPORT CUresult cuGetErrorString(CUresult number, const char** text) {
    static auto& sentences = *new std::map<CUresult, std::string>;
    if (!text) return INVALID_VALUE;
    const driver::Error* found = driver::error(number);
    *text = nullptr;
    if (!found) return INVALID_VALUE;
    std::lock_guard<std::mutex> lock(driver::state().lock);
    std::string& sentence = sentences[number];
    if (sentence.empty()) {
        sentence = std::string(found->name).substr(number == SUCCESS ? sizeof "CUDA" : sizeof "CUDA_ERROR");
        for (char& c : sentence) c = c == '_' ? ' ' : char(std::tolower(c));
    }
    *text = sentence.c_str();
    return SUCCESS;
}
