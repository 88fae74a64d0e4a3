// Package iscsilab puts the iSCSI target, as `cleave lun serve` runs it, under what a
// unit test has no time for: a hundred thousand logins, tens of sessions at once,
// floods of connections that never log in. What is looked at is the server's
// process from outside: its memory, and whether it answers.
//
// The tests carry the build tag lab and run with `make lab ROWS=iscsilab`.
package iscsilab
