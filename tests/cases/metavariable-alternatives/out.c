int f() { if (limit > top) g(); if (limit > 65000 /* 255 */) h(); }
