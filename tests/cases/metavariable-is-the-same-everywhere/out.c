void f() { a = 1; use(b); c = 1; use(c + 1); }
