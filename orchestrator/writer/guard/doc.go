// Package guard pauses a QEMU virtual machine so that it can't stay paused.
//
// The pause belongs to a small process of its own, the guard: the same binary,
// started again with the hidden command "guard", in a session of its own. It
// connects to QMP, stops the VM, says so in one line of JSON, and from then on
// lets the VM run again as soon as the first of these happens:
//
//   - its launcher asks for it;
//   - its launcher is gone, however it died (the guard's standard input ends);
//   - the limit has passed.
//
// It ignores SIGHUP, SIGINT and SIGTERM until then, and tries again for as long
// as QEMU does not do as it is told, until the VM runs or QEMU is gone. What is
// left is a kill -9 of the guard itself: a launcher that lives lets the VM run
// in its place.
//
// The guard holds the VM's QMP socket for the length of the pause; the socket
// serves nobody else meanwhile. A VM that was not running is left as it is.
package guard
