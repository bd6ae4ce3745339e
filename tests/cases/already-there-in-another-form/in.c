void f() { unsigned char ch; n += ch << 8; }
