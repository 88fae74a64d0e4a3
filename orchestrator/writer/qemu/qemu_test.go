package qemu_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/writer"
	"github.com/cleave-san/cleave/orchestrator/writer/guard"
	"github.com/cleave-san/cleave/orchestrator/writer/qemu"
	"github.com/cleave-san/cleave/orchestrator/writer/qemu/qemutest"
	"github.com/cleave-san/cleave/orchestrator/writer/qemu/qmp"
	"github.com/cleave-san/cleave/orchestrator/writer/writertest"
)

// The test binary is its own guard.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == guard.Command {
		os.Exit(guard.Main(os.Args[2:], os.Stdin, os.Stdout))
	}
	goleak.VerifyTestMain(m)
}

// start runs a real QEMU with the given disks and no guest but its firmware.
func start(t *testing.T, dir string, args ...string) (qmpPath string) {
	t.Helper()
	program, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("qemu-system-x86_64 is not installed (Debian: qemu-system-x86)")
	}
	path := filepath.Join(dir, "qmp")
	cmd := exec.Command(program, append([]string{"-M", "q35", "-accel", "tcg", "-m", "64", "-display", "none", "-nodefaults",
		"-qmp", "unix:" + path + ",server=on,wait=off"}, args...)...)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("QEMU: %s", log.String())
		}
	})
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := qmp.Dial(t.Context(), path, nil)
		if err == nil {
			c.Close()
			return path
		}
		if time.Now().After(end) {
			t.Fatalf("QEMU does not listen: %v\n%s", err, log.String())
		}
	}
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "qemu")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func open(t *testing.T, vms ...qemu.VM) *qemu.Writer {
	t.Helper()
	w, err := qemu.New(qemu.Config{VMs: vms, Executable: os.Args[0]}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestSuite(t *testing.T) {
	writertest.Run(t, func(t *testing.T) writertest.Subject {
		dir := shortDir(t)
		path := start(t, dir)
		silent := qemutest.Agent(t, func(qemutest.Command) qemutest.Answer { return qemutest.Answer{Hangup: true} })
		return writertest.Subject{
			Writer: open(t,
				qemu.VM{Name: "on", QMP: path},
				qemu.VM{Name: "off", QMP: filepath.Join(dir, "nobody"), Agent: silent}),
			Running: "on", Off: "off",
		}
	})
}

func image(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	return path
}

// What a real QEMU says of files, formats, cache modes, empty drives, flash and
// backing files.
func TestDisksOfARealQEMU(t *testing.T) {
	dir := shortDir(t)
	plain, unsafe, base, flash := image(t, dir, "plain"), image(t, dir, "unsafe"), image(t, dir, "base"), image(t, dir, "flash")
	cow, over := filepath.Join(dir, "cow"), filepath.Join(dir, "over")
	for _, args := range [][]string{{cow, "2M"}, {"-b", base, "-F", "raw", over}} {
		if out, err := exec.Command("qemu-img", append([]string{"create", "-q", "-f", "qcow2"}, args...)...).CombinedOutput(); err != nil {
			t.Skipf("qemu-img (Debian: qemu-utils): %v: %s", err, out)
		}
	}
	path := start(t, dir, "-uuid", "5d3f1a52-9d7c-4a43-9d2e-1f0c55aa0001", "-S",
		"-drive", "if=pflash,unit=0,format=raw,file="+image(t, dir, "firmware"), "-drive", "if=pflash,unit=1,format=raw,file="+flash,
		"-blockdev", "driver=file,node-name=f1,filename="+plain, "-blockdev", "driver=raw,node-name=r1,file=f1",
		"-device", "virtio-blk-pci,drive=r1,id=disk1",
		"-blockdev", "driver=file,node-name=f2,filename="+unsafe+",cache.no-flush=on", "-blockdev", "driver=raw,node-name=r2,file=f2",
		"-device", "virtio-blk-pci,drive=r2,id=disk2",
		"-drive", "if=none,id=d3,format=qcow2,cache=none,read-only=on,file="+cow, "-device", "virtio-blk-pci,drive=d3",
		"-drive", "if=none,id=d4,format=qcow2,cache=directsync,file="+over, "-device", "virtio-blk-pci,drive=d4,id=disk4",
		"-drive", "if=none,id=cd,media=cdrom", "-device", "ide-cd,drive=cd")
	vms, err := open(t, qemu.VM{Name: "vm", QMP: path, Config: "/etc/vm.conf"}).List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v := vms[0]
	if v.ID != "5d3f1a52-9d7c-4a43-9d2e-1f0c55aa0001" || v.Power != orchestrator.Paused || v.Config != "/etc/vm.conf" {
		t.Errorf("%+v", v)
	}
	want := []orchestrator.Disk{
		{Device: "disk1", Format: "raw", Size: 1 << 20, Cache: "writeback", Path: plain},
		{Device: "disk2", Format: "raw", Size: 1 << 20, Cache: "unsafe", Path: unsafe},
		{Device: "d3", Format: "qcow2", Size: 2 << 20, ReadOnly: true, Cache: "none", Path: cow},
		{Device: "disk4", Format: "qcow2", Size: 1 << 20, Cache: "directsync", Path: over, Backing: base},
	}
	byName := func(a, b orchestrator.Disk) bool { return a.Device < b.Device }
	if d := cmp.Diff(sorted(want, byName), sorted(v.Disks, byName)); d != "" {
		t.Error(d)
	}
}

func TestBusySocketIsReported(t *testing.T) {
	dir := shortDir(t)
	path := start(t, dir)
	c, err := qmp.Dial(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w := open(t, qemu.VM{Name: "vm", QMP: path})
	vms, err := w.List(t.Context())
	if err != nil || vms[0].Power != orchestrator.PowerUnknown || !strings.Contains(vms[0].Problem, "another client") {
		t.Fatalf("%+v, %v", vms, err)
	}
}

func TestGuestAnswers(t *testing.T) {
	running := qemutest.Rule(func(c qemutest.Command) qemutest.Answer {
		switch c.Execute {
		case "query-status":
			return qemutest.Answer{Return: qmp.Status{Status: "running", Running: true}}
		case "query-block", "query-named-block-nodes":
			return qemutest.Answer{Return: []any{}}
		}
		return qemutest.Answer{}
	})
	info := func(exec bool) any {
		return map[string]any{"version": "7.2.0", "supported_commands": []map[string]any{
			{"name": "guest-exec", "enabled": exec}, {"name": "guest-exec-status", "enabled": true},
			{"name": "guest-fsfreeze-freeze", "enabled": true}, {"name": "guest-fsfreeze-thaw", "enabled": true},
		}}
	}
	probe := `{"v":1,"probe":{}}
{"v":1,"volume":{"name":"vg/lv","uuid":"u","kind":"lvm-thick","size":4096,"free":8192}}
{"v":1,"app":{"app":"postgresql","running":true,"volumes":["vg/lv"]}}
{"v":1,"end":{}}
`
	answering := func(exec bool, out string) qemutest.Rule {
		return func(c qemutest.Command) qemutest.Answer {
			switch c.Execute {
			case "guest-info":
				return qemutest.Answer{Return: info(exec)}
			case "guest-exec":
				return qemutest.Answer{Return: map[string]int{"pid": 1}}
			case "guest-exec-status":
				return qemutest.Answer{Return: map[string]any{"exited": true, "exitcode": 0, "out-data": []byte(out)}}
			}
			return qemutest.Answer{}
		}
	}
	for name, test := range map[string]struct {
		rule  qemutest.Rule
		check func(g orchestrator.Guest) bool
	}{
		"able": {answering(true, probe), func(g orchestrator.Guest) bool {
			return g.Requester == "qemu-ga 7.2.0" && g.CanSnapshot && g.CanFreeze && len(g.Volumes) == 1 && g.Writers[0].Running
		}},
		"exec disabled": {answering(false, probe), func(g orchestrator.Guest) bool {
			return !g.CanSnapshot && strings.Contains(g.Cannot, "guest-exec") && g.Requester != ""
		}},
		"half a probe": {answering(true, probe[:120]), func(g orchestrator.Guest) bool { return !g.CanSnapshot && g.Cannot != "" }},
		"rubbish": {func(qemutest.Command) qemutest.Answer { return qemutest.Answer{Raw: "\xff[1]\n"} },
			func(g orchestrator.Guest) bool { return g.Silence != "" && g.Requester == "" }},
		"silent": {func(qemutest.Command) qemutest.Answer { return qemutest.Answer{Silent: true} },
			func(g orchestrator.Guest) bool { return strings.Contains(g.Silence, "does not answer") }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := open(t, qemu.VM{Name: "vm", QMP: qemutest.QMP(t, running), Agent: qemutest.Agent(t, test.rule)})
			vms, err := w.List(t.Context())
			if err != nil || vms[0].Problem != "" || !test.check(vms[0].Guest) {
				t.Fatalf("%+v, %v", vms, err)
			}
		})
	}
}

// Whoever has resumed a VM may ask for it and pause it again at once, however
// slowly the end of the guard is noticed here.
func TestResumedAtOnce(t *testing.T) {
	var running atomic.Bool
	running.Store(true)
	path := qemutest.QMP(t, func(c qemutest.Command) qemutest.Answer {
		switch c.Execute {
		case "stop", "cont":
			running.Store(c.Execute == "cont")
		case "query-status":
			s := qmp.Status{Status: "paused"}
			if running.Load() {
				s = qmp.Status{Status: "running", Running: true}
			}
			return qemutest.Answer{Return: s}
		case "query-block", "query-named-block-nodes":
			return qemutest.Answer{Return: []any{}}
		}
		return qemutest.Answer{}
	})
	w := open(t, qemu.VM{Name: "vm", QMP: path})
	for range 30 {
		p, err := w.Pause(t.Context(), "vm", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { // beside the resume: either is true, nothing else
				if vms, err := w.List(t.Context()); err != nil || vms[0].Problem != "" && !strings.Contains(vms[0].Problem, "paused by a guard") {
					t.Errorf("%+v, %v", vms, err)
				}
			})
		}
		if out, err := p.Resume(t.Context()); err != nil || out.ByGuard {
			t.Fatalf("%+v, %v", out, err)
		}
		vms, err := w.List(t.Context())
		if err != nil || vms[0].Power != orchestrator.Running {
			t.Fatalf("resumed, and the list says %+v, %v", vms, err)
		}
		wg.Wait()
	}
}

func TestConfigurationErrors(t *testing.T) {
	for _, vms := range [][]qemu.VM{
		{{Name: "a"}},
		{{QMP: "x"}},
		{{Name: "a", QMP: "x"}, {Name: "a", QMP: "y"}},
		{{Name: "a", QMP: "x"}, {Name: "b", QMP: "x"}},
	} {
		if _, err := qemu.New(qemu.Config{VMs: vms}, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%+v is taken", vms)
		}
	}
}

func TestSnapshotWithoutAgent(t *testing.T) {
	path := start(t, shortDir(t))
	w := open(t, qemu.VM{Name: "vm", QMP: path})
	if _, err := w.Snapshot(t.Context(), "vm", "set-0123456789abcdef", writer.GuestOptions{}); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%v", err)
	}
}

func sorted(d []orchestrator.Disk, less func(a, b orchestrator.Disk) bool) []orchestrator.Disk {
	out := append([]orchestrator.Disk(nil), d...)
	for i := range out {
		for j := i; j > 0 && less(out[j], out[j-1]); j-- {
			out[j], out[j-1] = out[j-1], out[j]
		}
	}
	return out
}
