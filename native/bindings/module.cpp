// The extension module penstock._native: one file of bindings an area.
#include <nanobind/nanobind.h>

#include "error.h"

namespace nb = nanobind;

void bind_kernels(nb::module_ & m);
void bind_storage(nb::module_ & m);
void bind_window(nb::module_ & m);
void bind_decoder(nb::module_ & m);
void bind_streamer(nb::module_ & m);
void bind_splats(nb::module_ & m);
void bind_splat_training(nb::module_ & m);
void bind_direct_file(nb::module_ & m);
void bind_entropy(nb::module_ & m);

namespace {

// The core's errors become the package's own (src/penstock/errors.py).
void translate(const std::exception_ptr & p, void *) {
    const auto raise = [](const char * name, const char * what) {
        const nb::object type = nb::module_::import_("penstock.errors").attr(name);
        const nb::object text = nb::steal(PyUnicode_DecodeFSDefault(what));  // names of files may have any bytes
        PyErr_SetObject(type.ptr(), text.ptr());
    };
    try {
        std::rethrow_exception(p);
    } catch (const penstock::StorageError & e) {
        raise("StorageError", e.what());
    } catch (const penstock::FormatError & e) {
        raise("FormatError", e.what());
    }
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Penstock's native core: direct reads, the neuron window, kernels and the decoder.";
    nb::register_exception_translator(translate);
    bind_kernels(m);
    bind_storage(m);
    bind_window(m);
    bind_decoder(m);
    bind_streamer(m);
    bind_splats(m);
    bind_splat_training(m);
    bind_direct_file(m);
    bind_entropy(m);
}
