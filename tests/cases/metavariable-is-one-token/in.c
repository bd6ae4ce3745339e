void f()
{
 put(&a,&b,1);
 other(&ss,&ch,1); /* here */
 put(&a.b,&ch,1);
}
