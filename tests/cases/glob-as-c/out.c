void f() { y ; }
