#include <unistd.h>

int main(void)
{
  begin();
  report(out,slot,text,len);
  close(slot);
  return 0;
}
