//go:build lab

package mainjob

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/arrays/embedded/disk/loopfs"
	"github.com/cleave-san/cleave/integration/lab"
)

// foreign is foreignarray as the array behind a program: tgtd serves the VMs'
// disks, gotgt the LUNs of their snapshots, which are reflink copies on an XFS.
type foreign struct {
	exe, dir string
	tgtd     *tgtd
	command  []string // of the provider
}

const snapshotPort = 14260 // and on, for gotgt

func newForeign(t *testing.T) *foreign {
	t.Helper()
	f := &foreign{exe: filepath.Join(t.TempDir(), "foreignarray")}
	build := exec.CommandContext(t.Context(), "go", "build", "-C", "../foreignarray", "-o", f.exe, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return f
}

// open makes its file system.
func (f *foreign) open(t *testing.T) {
	t.Helper()
	t.Log("PEER gotgt 0.2.2")
	f.dir = filepath.Join(loopfs.Mount(t, loopfs.XFS, 8<<30).Dir, "array")
	if err := os.Mkdir(f.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f.command = []string{f.exe, "--provide", f.dir, "--port", fmt.Sprint(snapshotPort)}
}

// relayed has all that is said to its program heard by c.
func (f *foreign) relayed(t *testing.T, c *calls) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f.command = append([]string{self, relayCommand, c.hearRelay(t)}, f.command...)
}

func (f *foreign) arrays() []string {
	return []string{fmt.Sprintf("name: foreign\ntype: program\ncommand: [\"%s\"]", strings.Join(f.command, `", "`))}
}

func (f *foreign) disk(s *scene, name string, size int64) lab.Disk {
	s.Helper()
	file, err := os.OpenFile(filepath.Join(f.dir, name+".raw"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	s.ok(err)
	s.ok(file.Truncate(size))
	s.ok(file.Close())
	if f.tgtd == nil {
		f.tgtd = startTgtd(s.T)
	}
	return lab.Disk{Bus: lab.SCSIHD, LUN: f.tgtd.present("iqn.2016-04.org.example:volume."+name, file.Name())}
}

func (f *foreign) wantNothingLeft(s *scene) {
	s.Helper()
	left, err := filepath.Glob(filepath.Join(f.dir, "snapshots", "*"))
	s.check(err)
	if len(left) > 0 {
		s.Errorf("left in the foreign array: %q", left)
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	s.check(err)
	for _, p := range processes {
		b, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(b), f.dir) && strings.Contains(string(b), "\x00--lun\x00") {
			s.Errorf("still served: %q", b)
		}
	}
}
