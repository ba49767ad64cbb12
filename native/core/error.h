// Errors of the core. The bindings turn them into penstock.StorageError, penstock.FormatError and ValueError.
#pragma once

#include <stdexcept>
#include <string>

namespace penstock {

// A read failed or came back short. What was being read can be tried again.
struct StorageError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A file holds something that its format does not allow.
struct FormatError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The caller passed something out of range: a bug in the caller, or a file that was not checked.
struct ArgumentError : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

}  // namespace penstock
