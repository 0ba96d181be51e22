// Translation units of one program, which see the header in different ways.
#pragma once
#include <string>

std::string throws_once(const char *model);
std::string throws_again(const char *model);
std::string has_results(const char *model);
