package program_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/arraytest"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk/loopfs"
	"github.com/cleave-san/cleave/arrays/program"
)

// reflink is the example in a shell, on an XFS of its own.
func reflink(t *testing.T) (*arraytest.Lab, []arrays.Capability) {
	t.Helper()
	script, err := filepath.Abs("../../examples/provider-reflink/cleave-reflink")
	if err != nil {
		t.Fatal(err)
	}
	dir := loopfs.Mount(t, loopfs.XFS, 512<<20).Dir
	l := &arraytest.Lab{}
	for _, d := range []string{"volumes", "snapshots"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 4 {
		name := fmt.Sprintf("v%d", i)
		f, err := os.OpenFile(filepath.Join(dir, "volumes", name+".raw"), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		if err := f.Truncate(arraytest.MinVolume); err != nil {
			t.Fatal(err)
		}
		l.Volumes = append(l.Volumes, arraytest.Volume{ID: driver.VolumeID(name), Device: volume{f, arraytest.MinVolume}})
	}
	l.Disk = driver.Disk{Path: filepath.Join(dir, "volumes/v0.raw")}
	p := open(t, program.Options{Command: []string{script}, Environment: []string{"VOLUMES=" + dir + "/volumes", "SNAPSHOTS=" + dir + "/snapshots"}})
	l.Driver = p
	return l, p.Without()
}

// volume is how production writes to a file.
type volume struct {
	*os.File
	size int64
}

func (v volume) Size() int64 { return v.size }

func open(t *testing.T, o program.Options) *program.Driver {
	t.Helper()
	p, err := program.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// only hides the options that a program doesn't answer, as arrays.New does for
// the engine.
type only struct {
	driver.Driver
	driver.Opener
	driver.Rewriter
	driver.Describer
	driver.Checker
}

func TestReflink(t *testing.T) {
	arraytest.Run(t, func(t *testing.T) *arraytest.Lab {
		l, _ := reflink(t)
		p := l.Driver.(*program.Driver)
		l.Driver = only{p, p, p, p, p}
		return l
	})
}
