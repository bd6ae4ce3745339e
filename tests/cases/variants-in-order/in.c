void f() { b(1); }
