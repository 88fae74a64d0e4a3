//go:build lab

package lvmarray

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/lvm"
	"github.com/cleave-san/cleave/integration/lab"
)

// scene is a kind of volume, and how the array splits it.
type scene struct {
	name   string
	method lvm.Method
	create string // an lvcreate of volume $1
}

var scenes = []scene{
	{"tracked", lvm.TrackedSplit, "lvcreate -y --type raid1 -m1 -L 8M -n $1 vg0"},
	{"tracked3", lvm.TrackedSplit, "lvcreate -y --type raid1 -m2 -L 8M -n $1 vg0"},
	{"split", lvm.FullSplit, "lvcreate -y --type raid1 -m1 -L 8M -n $1 vg0"},
	{"thick", lvm.Snapshots, "lvcreate -y -L 8M -n $1 vg0"},
	{"thin", lvm.Snapshots, "lvs vg0/pool >/dev/null 2>&1 || lvcreate -y -L 200M -T vg0/pool; lvcreate -y -V 8M -T vg0/pool -n $1"},
}

// parts are those of the suite that are run, a regular expression; a scene takes
// seven minutes without KVM.
var parts = flag.String("parts", ".", "parts of the providers' suite to run, beside Describe")

const inside = "CLEAVE_LVM_SCENE" // set where the tests are to be run in the VM

// TestLVM has a VM run TestInside for each scene.
func TestLVM(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range scenes {
		t.Run(s.name, func(t *testing.T) {
			m := boot(t)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
			defer cancel()
			began := time.Now()
			out, err := m.Run(ctx, fmt.Sprintf("set -e\nset -- %s\npvcreate -q \"$@\"; vgcreate -q -s 1M vg0 \"$@\"\ncd /; %s=%s %s -test.v -test.run '^TestInside$/(Describe|%s)' 2>&1", strings.Join(m.Disks(), " "), inside, s.name, exe, *parts))
			for line := range strings.Lines(out.Stdout) {
				if l := strings.TrimSpace(line); strings.HasPrefix(l, "---") || strings.Contains(l, "_test.go:") || strings.Contains(l, ".go:") {
					t.Log(strings.TrimRight(line, "\n"))
				}
			}
			if err != nil || !strings.Contains(out.Stdout, "--- PASS: TestInside") {
				last := out.Stdout
				t.Fatalf("%v\n%s\n%s", err, last[max(0, len(last)-4000):], out.Stderr)
			}
			t.Logf("FIGURE suite of %s: %.0f s", s.name, time.Since(began).Seconds())
		})
	}
}

func boot(t *testing.T) *lab.Machine {
	t.Helper()
	dir := t.TempDir()
	v := lab.VM{Name: "lvmhost", Kind: lab.Proof, Memory: 512, Modules: []string{"dm-raid", "raid1", "dm-snapshot", "dm-thin-pool"}}
	for i := range 4 {
		name := filepath.Join(dir, fmt.Sprintf("disk%d", i))
		if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Truncate(name, 512<<20)); err != nil {
			t.Fatal(err)
		}
		v.Disks = append(v.Disks, lab.Disk{File: name})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	m, err := lab.Boot(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := m.Run(context.Background(), "lvs -a -o+lv_tags vg0; dmesg | tail -n 20")
			t.Logf("%s%s", out.Stdout, out.Stderr)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}
