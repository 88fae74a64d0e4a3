// Package demo is `cleave demo`: the whole story on one machine. It starts the
// array and the control plane, boots two real VMs, makes one snapshot set over
// both, and proves on the recovered LUN that nothing is missing and nothing is
// torn; then it cleans everything up.
//
// What it claims is checked, not narrated: each line of the proof is a check
// that can fail, and a failed one is the demo's exit status.
package demo
