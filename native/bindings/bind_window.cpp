// The window's bookkeeping alone, so that it can be tested against a plain model of sets.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include "neuron_window.h"

namespace nb = nanobind;
using namespace nb::literals;
using penstock::NeuronWindow;

namespace {

using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Pairs = std::vector<std::pair<int32_t, int32_t>>;

Pairs placed(const std::vector<NeuronWindow::Placed> & from) {
    Pairs out;
    for (const auto & p : from) out.emplace_back(p.neuron, p.slot);
    return out;
}

}  // namespace

void bind_window(nb::module_ & m) {
    nb::class_<NeuronWindow>(m, "NeuronWindow", "Which neuron's bundle sits in which slot of a layer's window memory.")
        .def(nb::init<int32_t, int32_t, int32_t>(), "neurons"_a, "capacity"_a, "window_tokens"_a = 0)
        .def("update", [](NeuronWindow & w, Ids active) { w.update(active.data(), active.size()); }, "active"_a,
             "One token's active neurons, ascending int32.")
        .def("clear", &NeuronWindow::clear, "Forget everything.")
        .def("admit", [](NeuronWindow & w, int32_t neuron) {
                bool there = false;
                const int32_t slot = w.admit(neuron, &there);
                return std::pair<int32_t, bool>(slot, there);
             }, "neuron"_a, "(slot or -1, whether it was there already).")
        .def_prop_ro("hits", [](const NeuronWindow & w) { return placed(w.hits()); }, "(neuron, slot) pairs that were in memory.")
        .def_prop_ro("misses", [](const NeuronWindow & w) { return placed(w.misses()); }, "(neuron, slot) pairs to read.")
        .def_prop_ro("overflow", [](const NeuronWindow & w) { return w.overflow(); }, "Neurons that found no slot.")
        .def_prop_ro("moves", [](const NeuronWindow & w) {
                Pairs out;
                for (const auto & move : w.moves()) out.emplace_back(move.from, move.to);
                return out;
             }, "(from, to) slot copies, in order, before anything is read.")
        .def_prop_ro("live", &NeuronWindow::live, "Slots in use: always the first ones.")
        .def_prop_ro("capacity", &NeuronWindow::capacity, "Slots.")
        .def("neuron_of", [](const NeuronWindow & w, int32_t slot) {
                if (slot < 0 || slot >= w.live()) throw nb::index_error("slot is not in use");
                return w.neuron_of(slot);
             }, "slot"_a, "The neuron in a slot.");
}
