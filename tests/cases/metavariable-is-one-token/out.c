void f()
{
 put(&a,&b,1);
 other(&ss,&ch,1); /* here */
 other(&ss,"",1);
 put(&a.b,&ch,1);
}
