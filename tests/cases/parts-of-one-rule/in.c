void f() { a(); }
void g() { a(); }
