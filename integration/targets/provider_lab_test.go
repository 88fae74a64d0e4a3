//go:build lab

package targets

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/arraytest"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk/loopfs"
	"github.com/cleave-san/cleave/arrays/program"
	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/initiator"
)

// provided is foreignarray as a provider, in a network namespace of its own, with
// volumes on an XFS of their own.
type provided struct {
	*program.Driver
	foreign // whoever dials comes into its namespace
	dir     string
}

func newProvided(t *testing.T, exe string, volumes int) *provided {
	t.Helper()
	p := &provided{dir: filepath.Join(loopfs.Mount(t, loopfs.XFS, 512<<20).Dir, "array")}
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range volumes {
		name := filepath.Join(p.dir, fmt.Sprintf("v%d.raw", i))
		if err := os.WriteFile(name, make([]byte, arraytest.MinVolume), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// It ends with its input, when we do. (A signal at its parent's death would come when
	// the thread that started it ends, and those that dial end theirs.)
	holder := exec.Command("unshare", "-n", "sh", "-c", "ip link set lo up && echo up && exec cat")
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err == nil {
		err = holder.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = holder.Wait() })
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	p.pid = holder.Process.Pid
	p.Driver, err = program.Open(t.Context(), program.Options{
		Command: []string{"/usr/bin/nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", p.pid), exe, "--provide", p.dir},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Close()
		left, _ := filepath.Glob(filepath.Join(p.dir, "snapshots/*.lun"))
		for _, f := range left {
			b, _ := os.ReadFile(f)
			if pid, err := strconv.Atoi(strings.TrimSpace(string(b[min(len(b), 512):]))); err == nil && pid > 1 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			if !t.Failed() {
				t.Errorf("%s is left", filepath.Base(f))
			}
		}
	})
	return p
}

// only hides the options that foreignarray doesn't answer.
type only struct {
	driver.Driver
	driver.Opener
	driver.Exposer
	driver.Describer
}

type file struct {
	*os.File
	size int64
}

func (f file) Size() int64 { return f.size }

// TestGotgtProvider runs the providers' suite on foreignarray, kept alive.
func TestGotgtProvider(t *testing.T) {
	t.Log("PEER gotgt 0.2.2")
	exe := buildForeign(t)
	arraytest.Run(t, func(t *testing.T) *arraytest.Lab {
		p := newProvided(t, exe, 3)
		l := &arraytest.Lab{Driver: only{p, p, p, p}, Initiator: string(host), Disk: driver.Disk{Path: filepath.Join(p.dir, "v0.raw")}}
		for i := range 3 {
			name := fmt.Sprintf("v%d", i)
			f, err := os.OpenFile(filepath.Join(p.dir, name+".raw"), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			l.Volumes = append(l.Volumes, arraytest.Volume{ID: driver.VolumeID(name), Device: file{f, arraytest.MinVolume}})
		}
		return l
	})
}

// TestGotgtProviderLUN logs in to what the provider exposes: the split's content,
// which is written to only where that was asked for, and nothing is left.
func TestGotgtProviderLUN(t *testing.T) {
	p := newProvided(t, buildForeign(t), 1)
	a := arrays.New("foreign", p.Driver, arrays.Options{Without: p.Without()})
	ctx, want := t.Context(), noise(arraytest.MinVolume, 5)
	if err := os.WriteFile(filepath.Join(p.dir, "v0.raw"), want, 0o600); err != nil {
		t.Fatal(err)
	}
	ss, err := a.Split(ctx, "set-1", []driver.VolumeID{"v0"})
	if err != nil {
		t.Fatal(err)
	}
	id := ss[0].ID
	login := func(writable bool) *initiator.Disk {
		t.Helper()
		at, err := a.Expose(ctx, id, driver.ExposeOptions{Initiators: []string{string(host)}, Writable: writable})
		if err != nil {
			t.Fatal(err)
		}
		target, err := iscsi.ParseName(at.IQN)
		if err != nil {
			t.Fatal(err)
		}
		d, err := initiator.Open(ctx, initiator.Options{Portals: at.Portals, Target: target, LUN: int(at.LUN), Initiator: host, Dial: p.dial, Recovery: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for _, writable := range []bool{false, true} {
		d := login(writable)
		got := make([]byte, d.Size())
		if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("writable %v: it is not what was split; %v", writable, err)
		}
		if _, err := d.WriteAt(noise(4096, 6), 8192); err != nil {
			t.Error(err)
		}
		if err := d.Sync(); err != nil {
			t.Error(err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := a.Delete(ctx, id); arrays.KindOf(err) != driver.Busy {
		t.Errorf("Delete of what is exposed: %v", err)
	}
	if err := a.Unexpose(ctx, id); err != nil {
		t.Fatal(err)
	}
	copy(want[8192:], noise(4096, 6)) // by the second: the first one's copy is gone
	d, err := a.Open(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, d.Size())
	if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the snapshot does not hold what was written to its LUN; %v", err)
	}
	if err := d.(interface{ Close() error }).Close(); err != nil {
		t.Error(err)
	}
	if ss, err := a.Lookup(ctx, "set-1"); err != nil || len(ss) != 1 || ss[0].State != driver.Skewed {
		t.Errorf("%+v, %v", ss, err)
	}
	if err := a.Delete(ctx, id); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(p.dir, "snapshots")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
