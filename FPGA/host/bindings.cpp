// `csengine._xrt`: the host for Python.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "host.h"
#include "version.h"

namespace py = pybind11;
using csengine::host::Host;
using csengine::host::SampleSize;
using csengine::host::Seconds;

namespace {

using Bytes = py::array_t<uint8_t, py::array::c_style>;

void check(const Bytes& bytes, size_t size, const char* name) {
    if (bytes.ndim() == 2 && static_cast<size_t>(bytes.shape(1)) == size) return;
    throw py::value_error(std::string(name) + " is not an array of [samples, " + std::to_string(size) + "] bytes");
}

uint64_t run(Host& host, const Bytes& x, Bytes& y) {
    check(x, host.size().x, "x");
    check(y, host.size().y, "y");
    if (x.shape(0) != y.shape(0)) throw py::value_error("x and y hold different numbers of samples");
    const auto* from = reinterpret_cast<const char*>(x.data());
    auto* to = reinterpret_cast<char*>(y.mutable_data());
    const auto samples = static_cast<size_t>(x.shape(0));
    const py::gil_scoped_release release;
    return host.run(from, to, samples);
}

// Whatever the host or XRT throws becomes `csengine.errors.DeviceError`.
void translate(std::exception_ptr error) {
    if (!error) return;
    try {
        std::rethrow_exception(error);
    } catch (const py::error_already_set&) {
        throw;
    } catch (const py::builtin_exception&) {
        throw;
    } catch (const std::exception& failure) {
        PyErr_SetString(py::module_::import("csengine.errors").attr("DeviceError").ptr(), failure.what());
    }
}

}  // namespace

PYBIND11_MODULE(_xrt, module) {
    module.doc() = "Runs batches on FPGAs through XRT.";
    module.attr("version") = xrt_build_version;
    py::register_local_exception_translator(translate);
    const py::call_guard<py::gil_scoped_release> release;
    py::class_<Host>(module, "Host")
        .def(py::init([](const std::vector<std::string>& devices, const std::string& xclbin, size_t x_bytes,
                         size_t y_bytes, size_t samples_per_chunk, double timeout) {
                 return std::make_unique<Host>(devices, xclbin, SampleSize{x_bytes, y_bytes}, samples_per_chunk,
                                               Seconds(timeout));
             }),
             py::arg("devices"), py::arg("xclbin"), py::arg("x_bytes"), py::arg("y_bytes"),
             py::arg("samples_per_chunk"), py::arg("timeout"), release)
        .def("units", &Host::units)
        .def("shape_ids", &Host::shape_ids, release)
        .def(
            "load",
            [](Host& host, const Bytes& image) {
                const auto* data = reinterpret_cast<const char*>(image.data());
                const auto bytes = static_cast<size_t>(image.nbytes());
                const py::gil_scoped_release unlocked;
                host.load(data, bytes);
            },
            py::arg("image"))
        .def("run", &run, py::arg("x"), py::arg("y").noconvert())
        .def("close", &Host::close, release);
}
