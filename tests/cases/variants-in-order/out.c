void f() { c(1); }
