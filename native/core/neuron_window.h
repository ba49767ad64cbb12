// The window memory's bookkeeping: which neuron's bundle sits in which slot.
//
// Slots [0, live) are always in use: a deleted slot is filled at once, by an incoming neuron if
// there is one, else by the last live slot (swap-delete, LLM in a flash section 3.3), so kernels
// never meet a hole. Neurons active in the last `window_tokens` tokens stay; window_tokens 0 means:
// as long as there is room. What does not fit is evicted by heat, least first: a neuron's count of
// activity, of which each token keeps kKeep (LFU with ageing). Hot neurons outlive a few tokens of
// silence that way, which least-recently-used does not give them: 4 to 13 % fewer misses, measured
// (docs/streaming.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace penstock {

class NeuronWindow {
public:
    // neurons >= 1 in the layer; capacity slots, at most neurons.
    NeuronWindow(int32_t neurons, int32_t capacity, int32_t window_tokens);

    struct Placed {
        int32_t neuron;
        int32_t slot;
    };
    struct Move {
        int32_t from;
        int32_t to;
    };

    // One token's active neurons, ascending and distinct. Afterwards:
    //   hits      active neurons that are in memory already, with their slots (after moves())
    //   moves     slots to copy before anything is read, in order
    //   misses    active neurons to read, each into its slot, ascending by neuron
    //   overflow  active neurons for which no slot is left: to be read, used and dropped
    void update(const int32_t * active, size_t count);

    // Admit one neuron outside of update() (seeding after a prompt), which counts as `uses` times
    // active now. Returns its slot, whether it was there already or not; -1 when the window is full.
    int32_t admit(int32_t neuron, bool * already_there, float uses = 1.0f);

    // Empty all slots, for instance after a failed read left some unwritten. Heat stays.
    void clear();

    const std::vector<Placed> & hits() const { return hits_; }
    const std::vector<Move> & moves() const { return moves_; }
    const std::vector<Placed> & misses() const { return misses_; }
    const std::vector<int32_t> & overflow() const { return overflow_; }
    int32_t live() const { return live_; }
    int32_t capacity() const { return capacity_; }
    int32_t slot_of(int32_t neuron) const { return slot_of_[static_cast<size_t>(neuron)]; }
    int32_t neuron_of(int32_t slot) const { return neuron_of_[static_cast<size_t>(slot)]; }
    // Bytes that the tables take, for the budget.
    static size_t table_bytes(int32_t neurons, int32_t capacity);

    static constexpr float kKeep = 0.98f;  // what a token leaves of the heat before it

private:
    void cool();
    void choose_victims(size_t needed);

    int32_t neurons_, capacity_, window_tokens_;
    int32_t live_ = 0;
    int64_t now_ = 0;                  // tokens seen
    float heat_now_ = 1.0f;            // what activity adds now: it grows, so that nothing else need fade
    std::vector<int32_t> slot_of_;     // (neurons) -1: not in memory
    std::vector<int32_t> neuron_of_;   // (capacity)
    std::vector<int64_t> last_;        // (capacity) token at which the slot's neuron was last active
    std::vector<float> heat_;          // (neurons) in memory or not
    std::vector<int32_t> victims_;     // slots, ascending
    std::vector<float> heats_;         // scratch
    std::vector<Placed> hits_, misses_;
    std::vector<Move> moves_;
    std::vector<int32_t> overflow_;
};

}  // namespace penstock
