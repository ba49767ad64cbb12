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

using Offsets = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> array_of(std::vector<T> && values) {
    auto * kept = new std::vector<T>(std::move(values));
    nb::capsule owner(kept, [](void * p) noexcept { delete static_cast<std::vector<T> *>(p); });
    return nb::ndarray<nb::numpy, T, nb::ndim<1>>(kept->data(), {kept->size()}, owner);
}

Pairs placed(const std::vector<NeuronWindow::Placed> & from) {
    Pairs out;
    for (const auto & p : from) out.emplace_back(p.neuron, p.slot);
    return out;
}

}  // namespace

void bind_window(nb::module_ & m) {
    nb::class_<NeuronWindow>(m, "NeuronWindow", "Which neuron's bundle sits in which slot of a layer's window memory.")
        .def_ro_static("KEEP", &NeuronWindow::kKeep, "What a token leaves of a neuron's heat, its count of activity.")
        .def(nb::init<int32_t, int32_t, int32_t>(), "neurons"_a, "capacity"_a, "window_tokens"_a = 0)
        .def("update", [](NeuronWindow & w, Ids active) { w.update(active.data(), active.size()); }, "active"_a,
             "One token's active neurons, ascending int32.")
        .def("clear", &NeuronWindow::clear, "Empty all slots; heat stays.")
        .def("admit", [](NeuronWindow & w, int32_t neuron) {
                bool there = false;
                const int32_t slot = w.admit(neuron, &there);
                return std::pair<int32_t, bool>(slot, there);
             }, "neuron"_a, "(slot or -1, whether it was there already).")
        .def("replay", [](NeuronWindow & w, Ids ids, Offsets offsets) {
                std::vector<int32_t> missed;
                std::vector<int64_t> ends = {0};
                for (size_t t = 0; t + 1 < offsets.size(); ++t) {
                    const int64_t from = offsets.data()[t], to = offsets.data()[t + 1];
                    if (from < 0 || to < from || static_cast<size_t>(to) > ids.size()) throw nb::value_error("replay: offsets must ascend within ids");
                    w.update(ids.data() + from, static_cast<size_t>(to - from));
                    for (const auto & miss : w.misses()) missed.push_back(miss.neuron);
                    missed.insert(missed.end(), w.overflow().begin(), w.overflow().end());
                    ends.push_back(static_cast<int64_t>(missed.size()));
                }
                return std::pair(array_of(std::move(missed)), array_of(std::move(ends)));
             }, "ids"_a, "offsets"_a,
             "One update for each ids[offsets[t]:offsets[t + 1]]. Returns what had to be read: (ids, offsets) in the same form, ascending.")
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
