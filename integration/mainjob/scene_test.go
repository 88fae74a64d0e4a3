package mainjob

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cleave-san/cleave/integration/lab"
	"github.com/cleave-san/cleave/integration/stage"
	"github.com/cleave-san/cleave/orchestrator"
)

// scene is a stage with the VMs db and, if asked, legacy, under load.
type scene struct {
	*testing.T
	ctx        context.Context
	stage      *stage.Stage
	storage    storage // nil: the stage's own array
	load       string
	canary     bool // db has one
	db, legacy *lab.Machine
}

// storage is an array of other hands, on which VMs have their disks.
type storage interface {
	// arrays are its entries in the control plane's configuration.
	arrays() []string
	// disk makes a disk of so many bytes.
	disk(s *scene, name string, size int64) lab.Disk
	// wantNothingLeft fails if anything of a set is still there.
	wantNothingLeft(s *scene)
}

// program builds cleave once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "cleave-mainjob-")
	if err != nil {
		return "", err
	}
	exe := filepath.Join(dir, "cleave")
	cmd := exec.Command("go", "build", "-o", exe, "github.com/cleave-san/cleave/plugin/cmd/cleave")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, out)
	}
	return exe, nil
})

func TestMain(m *testing.M) {
	if len(os.Args) > 3 && os.Args[1] == relayCommand {
		if err := relay(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if exe, err := program(); err == nil {
		if err := os.RemoveAll(filepath.Dir(exe)); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	os.Exit(code)
}

// open sets the scene: array, VMs, load, control plane.
func open(t *testing.T, layout lab.Layout, legacy bool) *scene {
	t.Helper()
	return openOn(t, nil, layout, legacy)
}

func openOn(t *testing.T, where storage, layout lab.Layout, legacy bool) *scene {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs QEMU (Debian: qemu-system-x86)")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	t.Cleanup(cancel)
	s := &scene{T: t, ctx: ctx, storage: where}
	exe, err := program()
	s.ok(err)
	s.load, err = lab.GuestLoad(ctx)
	s.ok(err)
	dir, err := os.MkdirTemp("", "cleave-")
	s.ok(err)
	t.Cleanup(func() { s.ok(os.RemoveAll(dir)) })
	o := stage.Options{Exe: exe, Dir: dir}
	if where != nil {
		o.Arrays = where.arrays()
	}
	s.stage, err = stage.New(ctx, o)
	s.ok(err)
	t.Cleanup(s.close)

	s.db, err = lab.Boot(ctx, lab.VM{Name: "db", Kind: lab.DB, Disks: []lab.Disk{s.disk("db", 2<<30)}, Layout: layout})
	s.ok(err)
	vms := []*lab.Machine{s.db}
	if legacy {
		s.legacy, err = lab.Boot(ctx, lab.VM{Name: "legacy", Kind: lab.Legacy, Memory: 256, Disks: []lab.Disk{s.disk("legacy", 256<<20)}})
		s.ok(err)
		vms = append(vms, s.legacy)
	}
	s.ok(s.db.StartInserts(ctx, s.load))
	if layout.Canary != "" {
		s.canary = true
		s.ok(s.db.StartCanary(ctx, s.load, "/dev/vgdata/canary"))
	}
	s.ok(s.stage.StartServe(ctx, vms...))
	return s
}

// disk makes a disk of so many bytes where the scene has its disks.
func (s *scene) disk(name string, size int64) lab.Disk {
	s.Helper()
	if s.storage != nil {
		return s.storage.disk(s, name, size)
	}
	lun, err := s.stage.Disk(s.ctx, name, fmt.Sprint(size))
	s.ok(err)
	return lab.Disk{LUN: &lun, Bus: lab.SCSIHD}
}

func (s *scene) close() {
	if s.Failed() {
		for _, name := range []string{"array.log", "serve.log"} {
			if b, err := os.ReadFile(filepath.Join(s.stage.Dir(), name)); err == nil {
				s.Logf("%s:\n%s", name, b[max(0, len(b)-4000):])
			}
		}
	}
	for _, m := range []*lab.Machine{s.legacy, s.db} {
		if m != nil {
			s.check(m.Close())
		}
	}
	s.check(s.stage.Close())
}

// ok ends the test on an error; check only fails it.
func (s *scene) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *scene) check(err error) {
	s.Helper()
	if err != nil {
		s.Error(err)
	}
}

// vm finds a VM's result.
func vm(set orchestrator.Set, name string) orchestrator.VMResult {
	i := slices.IndexFunc(set.VMs, func(v orchestrator.VMResult) bool { return v.Name == name })
	if i < 0 {
		return orchestrator.VMResult{}
	}
	return set.VMs[i]
}

// wantNothingLeft fails if anything of a set is still there: in the guest, on
// the array, at the target, among the processes.
func (s *scene) wantNothingLeft() {
	s.Helper()
	out, err := s.db.Run(s.ctx, `lvs --noheadings -o lv_name -S 'lv_name=~^cleave-'; dmsetup info -c --noheadings -o name,suspended | grep -i suspended$ | grep -v "Active" || :`)
	s.check(err)
	if left := strings.TrimSpace(out.Stdout); left != "" {
		s.Errorf("left in the guest: %q", left)
	}
	for _, m := range []*lab.Machine{s.db, s.legacy} {
		if m == nil {
			continue
		}
		var status struct {
			Status string `json:"status"`
		}
		s.check(m.QMP(s.ctx, "query-status", nil, &status))
		if status.Status != "running" {
			s.Errorf("%s is %s", m.Name(), status.Status)
		}
	}
	volumes, err := s.stage.Volumes(s.ctx)
	s.check(err)
	for _, v := range volumes {
		if len(v.Snapshots) > 0 {
			s.Errorf("volume %s still has splits %q", v.Name, v.Snapshots)
		}
	}
	seen, err := s.stage.Seen(s.ctx, stage.ProofInitiator)
	s.check(err)
	if len(seen) > 0 {
		s.Errorf("still exposed: %q", seen)
	}
	if p := s.stage.Workers(); len(p) > 0 {
		s.Errorf("still running: %q", p)
	}
	if s.storage != nil {
		s.storage.wantNothingLeft(s)
	}
}

// wantNoIOError fails if a guest or its hypervisor saw an I/O error.
func (s *scene) wantNoIOError() {
	s.Helper()
	for _, m := range []*lab.Machine{s.db, s.legacy} {
		if m == nil {
			continue
		}
		out, err := m.Run(s.ctx, `dmesg | grep -iE 'I/O error|aborted journal|remount.*read-only' || :`)
		s.check(err)
		if out.Stdout != "" {
			s.Errorf("%s: %s", m.Name(), out.Stdout)
		}
		var devs []struct {
			Device   string `json:"device"`
			IOStatus string `json:"io-status"`
		}
		s.check(m.QMP(s.ctx, "query-block", nil, &devs))
		for _, d := range devs {
			if d.IOStatus != "" && d.IOStatus != "ok" {
				s.Errorf("%s: %s has I/O status %s", m.Name(), d.Device, d.IOStatus)
			}
		}
	}
}

// wantProgress fails unless db commits something new.
func (s *scene) wantProgress() {
	s.Helper()
	record, err := lab.ReadRecord(s.db.Record())
	s.ok(err)
	for deadline := time.Now().Add(time.Minute); ; {
		now, err := lab.ReadRecord(s.db.Record())
		s.ok(err)
		if len(now) > len(record)+5 {
			return
		}
		if time.Now().After(deadline) {
			s.Fatal("db commits nothing any more")
		}
		time.Sleep(100 * time.Millisecond) // between two looks at a file
	}
}
