// Which tiers this processor and this operating system can run.
#pragma once

#include <string>

#include "kernels/kernel.h"

namespace cs {

const char* name(Tier tier);
const char* name(Mode mode);

// Throws std::invalid_argument for a name that no tier has.
Tier tier_from_name(const std::string& name);
Mode mode_from_name(const std::string& name);

// Whether the tier can run here. For AMX this asks the kernel for permission to use the tile registers, once.
bool is_available(Tier tier);

Tier best_tier();

}  // namespace cs
