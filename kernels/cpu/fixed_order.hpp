// Products whose every element is summed in one fixed order, whatever the sizes of the matrices around it and
// the number of threads. BLAS does not promise that (OpenBLAS gives a row other bits at another place of the
// batch). Used where deterministic results are asked for, and by attention over pages.
#pragma once

#include "kernels/cpu/rows.hpp"

#include <cstdint>

namespace sl {

// out(i, j) = alpha * (row i of a . row j of b), for m rows of a, n rows of b, k numbers a row. On one
// thread.
void dot_products(ConstRows a, int64_t m, ConstRows b, int64_t n, int64_t k, float alpha, Rows out);

// out(i, d) += sum over j, ascending, of p(i, j) * v(j, d), for m rows of p, n rows of v, `width` numbers a
// row of v. On one thread.
void add_weighted_rows(ConstRows p, int64_t m, ConstRows v, int64_t n, int64_t width, Rows out);

}  // namespace sl
