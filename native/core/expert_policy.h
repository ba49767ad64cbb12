// Which expert leaves the window when another must come in: one interface, four policies.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace penstock {

class ExpertPolicy {
public:
    virtual ~ExpertPolicy() = default;
    // A token begins, or a batch of prompt tokens, which counts as one.
    virtual void token(bool batch) = 0;
    // An expert was chosen by its layer's router. Ids count through all layers.
    virtual void used(int32_t expert) = 0;
    // The router of these experts, all of a layer, has run.
    virtual void routed(int32_t first, int32_t count) { (void)first, (void)count; }
    // The expert with the least worth leaves first.
    virtual double worth(int32_t expert) const = 0;
};

// "adaptive": least likely to be used by the next token, as learned from the run itself. "lru": least recently used. "lfu": least frequently used; every token keeps 70 % of a count.
// "last-k": least often used in the last 32 tokens, as LLM in a flash keeps its neurons.
// Throws ArgumentError for another name.
std::unique_ptr<ExpertPolicy> make_expert_policy(const std::string & name, int32_t experts);

// Misses, and hits plus misses, of a recorded run with room for `capacity` experts.
struct ReplayCount {
    int64_t misses = 0;
    int64_t used = 0;
};
// ids[offsets[s] : offsets[s + 1]] is what step s needs at once: one layer of one token. Steps come in
// turns of `layers`. policy "belady": what is used again last leaves, which no online policy can know.
ReplayCount replay_experts(const std::string & policy, int32_t experts, int32_t capacity, int32_t layers,
                           const int32_t * ids, size_t count, const int64_t * offsets, size_t steps);

}  // namespace penstock
