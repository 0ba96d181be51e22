// Modules of PTX, their functions, and launches.
#include <cstring>

#include "driver.h"
#include "ptx.h"

namespace driver {

constexpr int PLAIN_SHARED = 48 << 10;  // what a block may have without being asked

struct Function {
    Context* context;
    std::string name;
    Entry entry;
    Ptx ptx;  // without its entries
    standin::Kernel kernel;
    int most_dynamic;  // bytes of shared memory that a launch may ask for
};

struct Module {
    Context* context;
    Ptx ptx;
    std::map<std::string, std::pair<CUhandle, std::shared_ptr<Function>>> functions;  // those that were asked for
};

namespace {

std::shared_ptr<Function> function_of(Context& context, CUhandle handle) {
    std::shared_ptr<Function> found;
    state().modules.each([&](const std::shared_ptr<Module>& module) {
        if (module->context != &context) return;
        for (const auto& [name, function] : module->functions) {
            if (function.first == handle) found = function.second;
        }
    });
    return found;
}

/// Whether the devices run PTX for a target: of their own capability or an earlier one; with the suffix `a` of their own
/// alone, with `f` of their family.
bool runs(const Ptx& ptx) {
    const int own = 10 * settings().major + settings().minor;
    if (ptx.suffix == 'a') return ptx.capability == own;
    if (ptx.suffix == 'f') return ptx.capability <= own && ptx.capability / 10 == own / 10;
    return ptx.capability <= own;
}

CUresult load(Context& context, CUhandle* handle, const void* image) {
    if (!handle || !image) return INVALID_VALUE;
    if (const CUresult status = unsafe_while_capturing(context, "cuModuleLoadData")) return status;
    auto text = static_cast<const char*>(image);
    // the magic numbers of fat binaries and of objects
    if (!memcmp(text, "\x50\xed\x55\xba", 4) || !memcmp(text, "\x7f" "ELF", 4)) return INVALID_IMAGE;
    const auto ptx = parse_ptx(text);
    if (!ptx) return INVALID_PTX;
    const auto driver = driver_for(ptx->version);
    if (!driver || settings().version < *driver) return UNSUPPORTED_PTX_VERSION;
    if (!runs(*ptx)) return NO_BINARY_FOR_GPU;
    if (is_to_fail(settings().fail_module)) return OUT_OF_MEMORY;
    *handle = state().modules.add(std::make_shared<Module>(Module{&context, *ptx, {}}));
    return SUCCESS;
}

/// The function of an entry point that is a kernel here too, with the same parameters.
CUresult make_function(Module& module, const std::string& name) {
    auto entry = module.ptx.entries.find(name);
    const standin::Kernel* kernel = standin::find(name);
    if (entry == module.ptx.entries.end() || !kernel) {
        explain(name + (kernel ? " is no entry point of the module" : " is no kernel of the stand-in"));
        return NOT_FOUND;
    }
    if (entry->second.parameters != std::vector<size_t>(kernel->sizes, kernel->sizes + kernel->count)) {
        explain("the parameters of " + name + " are not those of its PTX");
        return NOT_FOUND;
    }
    Function function{module.context, name, entry->second, module.ptx, *kernel, 0};
    function.ptx.entries.clear();
    function.most_dynamic = PLAIN_SHARED - int(function.entry.shared);
    module.functions[name] = {new_handle(), std::make_shared<Function>(function)};
    return SUCCESS;
}

struct Size {
    standin::Dim3 grid, block;
    unsigned shared;
};

/// Why a launch is refused, nothing if it is not.
std::optional<std::string> refusal(const Function& function, const Size& size) {
    const auto& [grid, block, shared] = size;
    if (!grid.x || !grid.y || !grid.z || !block.x || !block.y || !block.z) return "with no blocks or no threads";
    if (grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535) return "of too many blocks";
    if (block.x > 1024 || block.y > 1024 || block.z > 64) return "of too large blocks";
    const uint64_t threads = uint64_t(block.x) * block.y * block.z;
    if (threads > function.entry.most_threads) {
        return "with " + std::to_string(threads) + " threads, of at most " + std::to_string(function.entry.most_threads);
    }
    if (int64_t(shared) > function.most_dynamic) {
        return "with " + std::to_string(shared) + " bytes of shared memory, of at most " +
               std::to_string(function.most_dynamic);
    }
    return std::nullopt;
}

/// The work of a launch, with its own copy of the arguments.
Work launch_of(const Function& function, const Size& size, void** arguments) {
    std::vector<std::vector<uint64_t>> values;
    for (size_t i = 0; i < function.kernel.count; i++) {
        const size_t bytes = function.kernel.sizes[i];
        values.emplace_back((bytes + 7) / 8);
        memcpy(values.back().data(), arguments[i], bytes);
    }
    return [=, name = function.name, kernel = function.kernel]() mutable {
        std::vector<void*> pointers;
        for (auto& value : values) pointers.push_back(value.data());
        // threads take turns in another order every time
        const unsigned order = unsigned(counters().kernels++);
        counters().ran[name]++;
        if (name == settings().skip_kernel) return;
        if (name == settings().fail_kernel) throw Lost{settings().kernel_error};
        standin::launch(name, kernel, size.grid, size.block, size.shared, pointers.data(), order);
    };
}

template <class F>
CUresult on_function(CUhandle handle, F body) {
    return in_context([&](Context& context) -> CUresult {
        const auto function = function_of(context, handle);
        return function ? body(context, *function) : INVALID_HANDLE;
    });
}

}  // namespace

void drop_modules(Context& context) {
    state().modules.forget([&](const Module& module) { return module.context == &context; });
}

}  // namespace driver

using namespace driver;

EXPORT CUresult cuModuleLoadData(CUhandle* module, const void* image) {
    return in_context([&](Context& context) { return load(context, module, image); });
}

EXPORT CUresult cuModuleLoadDataEx(CUhandle* module, const void* image, unsigned options, const int*, void**) {
    return in_context([&](Context& context) -> CUresult {
        if (options) {
            explain("options of cuModuleLoadDataEx are not supported");
            return NOT_SUPPORTED;
        }
        return load(context, module, image);
    });
}

EXPORT CUresult cuModuleUnload(CUhandle module) {
    return in_context([&](Context& context) -> CUresult {
        if (!state().modules.find(module)) return INVALID_HANDLE;
        if (const CUresult status = unsafe_while_capturing(context, "cuModuleUnload")) return status;
        const CUresult status = finish_all(context);
        state().modules.remove(module);
        return status;
    });
}

EXPORT CUresult cuModuleGetFunction(CUhandle* function, CUhandle handle, const char* name) {
    return in_context([&](Context&) -> CUresult {
        const auto module = state().modules.find(handle);
        if (!module) return INVALID_HANDLE;
        if (!function || !name) return INVALID_VALUE;
        if (!module->functions.count(name)) {
            if (const CUresult status = make_function(*module, name)) return status;
        }
        *function = module->functions[name].first;
        return SUCCESS;
    });
}

/// 8: the dynamic shared memory that launches may ask for. With what the kernel declares it is at most the device's.
EXPORT CUresult cuFuncSetAttribute(CUhandle handle, int attribute, int value) {
    return on_function(handle, [&](Context&, Function& function) -> CUresult {
        if (attribute != 8) return NOT_SUPPORTED;
        if (value < 0 || value > int(opt_in_shared()) - int(function.entry.shared)) return INVALID_VALUE;
        function.most_dynamic = value;
        return SUCCESS;
    });
}

/// Those that PTX tells; registers and local memory are not known here.
EXPORT CUresult cuFuncGetAttribute(int* value, int attribute, CUhandle handle) {
    return on_function(handle, [&](Context&, Function& function) -> CUresult {
        if (!value) return INVALID_VALUE;
        switch (attribute) {
            case 0:
                *value = int(function.entry.most_threads);
                return SUCCESS;
            case 1:
                *value = int(function.entry.shared);
                return SUCCESS;
            case 5:
                *value = function.ptx.capability;
                return SUCCESS;
            case 6:
                *value = 10 * settings().major + settings().minor;
                return SUCCESS;
            case 8:
                *value = function.most_dynamic;
                return SUCCESS;
            default:
                return NOT_SUPPORTED;
        }
    });
}

EXPORT CUresult cuLaunchKernel(CUhandle handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                               unsigned block_y, unsigned block_z, unsigned shared, CUhandle stream_handle,
                               void** arguments, void** extra) {
    return on_function(handle, [&](Context& context, Function& function) -> CUresult {
        const auto stream = stream_of(context, stream_handle);
        if (!stream) return INVALID_HANDLE;
        const Size size{{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared};
        if (const auto reason = refusal(function, size)) {
            explain("a launch of " + function.name + " " + *reason);
            return INVALID_VALUE;
        }
        if (extra) return NOT_SUPPORTED;
        if (!arguments && function.kernel.count) return INVALID_VALUE;
        counters().launch_calls++;
        return launch_or_fail(context, stream, launch_of(function, size, arguments));
    });
}
