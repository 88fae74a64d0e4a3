package lab

import (
	"bytes"
	"context"
	"os"
	"testing"
	"time"
)

// TestQuickScratchDisk: a guest writes to a scratch disk, also where the LUN
// under it can't be written, and nothing of it reaches the disk.
func TestQuickScratchDisk(t *testing.T) {
	needVMs(t)
	backing := rawDisk(t, 64<<20)
	lun := tgtdLUN(t, backing)
	m := bootFor(t, VM{Name: "proof", Kind: Proof, Memory: 256, Disks: []Disk{
		{LUN: &lun, Bus: SCSIHD, Scratch: true},
		{File: rawDisk(t, 64<<20), Bus: SCSIHD, Scratch: true},
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for _, d := range m.Disks() {
		if _, err := m.Run(ctx, "echo written | dd of="+d+" conv=fsync,notrunc 2>/dev/null && [ \"$(head -c 7 "+d+")\" = written ]"); err != nil {
			t.Errorf("%s: %v", d, err)
		}
	}
	b, err := os.ReadFile(backing)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b, []byte("written")) {
		t.Error("what the guest wrote reached the disk")
	}
}
