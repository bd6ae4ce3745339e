#include <unistd.h>

int main(void)
{
  for (;;) {
    sigs_in(child);
    select(nfds,&rfds,0,0,0);
    sigs_out(child);
  }
}
