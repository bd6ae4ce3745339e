int f() { if (limit > top) g(); if (limit > MAX /* 255 */) h(); }
