void f() { x ; }
