package ntfs_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/fs/fstest"
	"github.com/cleave-san/cleave/lun/fs/ntfs"
	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/store/vss"
	"github.com/cleave-san/cleave/lun/vdisk"
	"github.com/cleave-san/cleave/lun/vdisk/qcow2"
)

// windowsVolume is one that Windows 7 made, with two shadow copies.
func windowsVolume(tb testing.TB) lun.Device {
	tb.Helper()
	dir, err := luntest.Testdata()
	if err != nil {
		tb.Fatal(err)
	}
	file, err := open.File(filepath.Join(dir, "vsstest.qcow2"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { file.Close() })
	d, err := qcow2.Open(file, vdisk.Options{ReadOnly: true})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { d.Close() })
	return d
}

// The sums are NTFS-3G's of the volume, and of its shadow copies through vshadowmount.
var (
	another  = map[string]string{"another_file": "c7fbc0e821c0871805a99584c6a384533909f68a6bbe9a2a687d28d9f3b10c16 2013-12-03T06:36:26.9409143Z"}
	syslogGz = map[string]string{"syslog.gz": "841c1522cad7c594eb63c6544f9ea22a08dc56351f17b6fe14149dfd4b4fb64c 2013-12-03T06:36:21.2781044Z"}
	password = map[string]string{"password.txt": "02a2a6af2f1ecf4720d7d49d640f0d0a269a7ec733e41973bdd34f09dad0e252 2013-12-03T06:38:53.7839722Z"}
	syslog   = map[string]string{"syslog": "0420b023f8dc1b71ff25191ce4ce88d10028f99f99f7c21532611f4c273aeae9 2013-12-03T06:32:24.8284891Z"}
)

func union(ms ...map[string]string) map[string]string {
	out := make(map[string]string)
	for _, m := range ms {
		maps.Copy(out, m)
	}
	return out
}

// TestWindows: a volume of Windows, unmounted, and its shadow copies, taken while it ran.
func TestWindows(t *testing.T) {
	live := windowsVolume(t)
	v, err := vss.Read(live)
	if err != nil {
		t.Fatal(err)
	}
	devices := []lun.Device{live}
	for _, c := range v.Copies {
		s, err := v.Open(c)
		if err != nil {
			t.Fatal(err)
		}
		devices = append(devices, s)
	}
	for i, want := range []map[string]string{union(another, syslogGz, password), syslog, union(another, syslogGz)} {
		f, err := ntfs.Open(devices[i])
		if err != nil {
			t.Fatal(i, err)
		}
		got := make(map[string]string)
		if err := fs.Walk(f, f.Root(), func(v fs.Visit) error {
			if v.Err != nil || v.Stat.Type != fs.Regular {
				return v.Err
			}
			if v.Path[0] == 'S' { // what shadow copies are kept in
				return nil
			}
			c, err := f.Open(v.Stat.Ref)
			if err != nil {
				return err
			}
			h := sha256.New()
			_, err = io.Copy(h, io.NewSectionReader(c, 0, c.Size()))
			got[v.Path] = fmt.Sprintf("%x %s", h.Sum(nil), v.Stat.Modified.UTC().Format("2006-01-02T15:04:05.999999999Z"))
			return err
		}); err != nil {
			t.Fatal(i, err)
		}
		if !maps.Equal(got, want) {
			t.Errorf("%d: %q, want %q", i, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
			t.Log(got)
		}
		if n := f.Info(); n.Label != "vsstest" || n.Variant != "3.1" || n.BlockSize != 4096 || n.Warnings != nil {
			t.Errorf("%+v", n)
		}
		fstest.Exercise(t, f)
	}
}
