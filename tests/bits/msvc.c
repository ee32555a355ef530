/* What libcmt.lib has for a program: its start, and the word by which the compiler asks for floating point. */
#include <corecrt_startup.h>
#include <stdlib.h>

int main(int argc, char **argv);
void mainCRTStartup(void);

int _fltused = 1;

void mainCRTStartup(void) {
    _configure_narrow_argv(_crt_argv_unexpanded_arguments);
    exit(main(*__p___argc(), *__p___argv()));
}
