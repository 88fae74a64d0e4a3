// Package writertest is for those who write a host writer, and for those who
// test against one.
//
//   - Run is the suite that every host writer passes (suite.go).
//   - Fake is a host writer without a hypervisor: VMs in memory and a list of
//     Faults that says what goes wrong, when and how often (fake.go).
package writertest
