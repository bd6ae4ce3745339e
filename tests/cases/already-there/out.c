void f() { y( ); x(); }
