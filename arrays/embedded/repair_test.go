package embedded

import (
	"bytes"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
)

// repaired has a volume repaired and says how many bytes that copied.
func repaired(t *testing.T, a *Array, v driver.VolumeID) int64 {
	t.Helper()
	before := a.copied.Load()
	if err := a.RepairVolume(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	if err := a.WaitInSync(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	return a.copied.Load() - before
}

func mirrorIn(t *testing.T, a *Array, v driver.VolumeID, pool string) MirrorInfo {
	t.Helper()
	info, err := a.VolumeInfo(v)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range info.Replicas {
		if m.Pool == pool {
			return m
		}
	}
	t.Fatalf("no mirror in pool %s: %+v", pool, info)
	return MirrorInfo{}
}

// A mirror that erred is filled with what it missed, and no more; over a
// restart, growth and a revert as well.
func TestErringMirrorIsRepaired(t *testing.T) {
	for _, during := range []string{"nothing", "restart", "growth", "revert"} {
		t.Run(during, func(t *testing.T) {
			o, fs, ev := faulty(t)
			a := open(t, o)
			info, h := create(t, a, "db", 32*mib, "a", "b", "c")
			write(t, h, 0, 32*mib, '1')
			var s driver.Snapshot
			if during == "revert" {
				s = split(t, a, "t", info.ID)
			}
			if err := a.find1(t, info.ID).quiesce(); err != nil { // no marks are left
				t.Fatal(err)
			}
			fs.set(failing("write", "a", syscall.EIO))
			write(t, h, 5*mib, 512, '2')
			fs.set(nil)
			write(t, h, 9*mib, 512, '3')
			if m := mirrorIn(t, a, info.ID, "a"); m.State != driver.Broken {
				t.Fatalf("%+v", m)
			}
			was := mirrorIn(t, a, info.ID, "a").ID
			limit := int64(4*mib + regionSize) // one region of the intent log, and one of the map
			switch during {
			case "restart":
				h.Close()
				if err := a.Close(); err != nil {
					t.Fatal(err)
				}
				a = open(t, o)
			case "growth":
				if _, err := a.GrowVolume(t.Context(), info.ID, 40*mib); err != nil {
					t.Fatal(err)
				}
				write(t, h, 40*mib-512, 512, '4')
				limit += regionSize
			case "revert":
				h.Close()
				if _, err := a.Revert(t.Context(), s.ID); err != nil {
					t.Fatal(err)
				}
				if err := a.WaitInSync(t.Context(), info.ID); err != nil {
					t.Fatal(err)
				}
			}
			copied := repaired(t, a, info.ID)
			if m := mirrorIn(t, a, info.ID, "a"); m.ID != was || m.State != driver.Synchronized {
				t.Fatalf("after the repair: %+v", m)
			}
			sameMirrors(t, a, info.ID)
			if copied < 2*regionSize || copied > limit {
				t.Errorf("%d bytes were copied, want at most %d", copied, limit)
			}
			if ev.count(MirrorReturned) != 1 && during != "restart" {
				t.Errorf("events: %+v", ev.events)
			}
		})
	}
}

// A mirror that failed while it was being filled goes on where it was.
func TestFillingMirrorIsRepaired(t *testing.T) {
	o, fs, _ := faulty(t)
	a := open(t, o)
	info, h := create(t, a, "db", 8*mib, "a")
	write(t, h, 0, 8*mib, '1')
	a.SetResyncRate(1)
	if _, err := a.AddMirror(t.Context(), info.ID, "b"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first chunk", func() bool { return mirrorIn(t, a, info.ID, "b").Copied > 0 })
	fs.set(failing("write", "b", syscall.EIO))
	write(t, h, 512, 512, '2')
	fs.set(nil)
	if m := mirrorIn(t, a, info.ID, "b"); m.State != driver.Broken {
		t.Fatalf("%+v", m)
	}
	write(t, h, 1024, 512, '3')
	a.SetResyncRate(0)
	repaired(t, a, info.ID)
	sameMirrors(t, a, info.ID)
	if v, _ := a.VolumeInfo(info.ID); v.Mirrors != 2 {
		t.Fatalf("%+v", v)
	}
}

// A file that was away comes back by itself; one that is another, or was cut
// short meanwhile, is not trusted and a new mirror takes its place.
func TestFileAway(t *testing.T) {
	for _, what := range []string{"back", "copied", "cut"} {
		t.Run(what, func(t *testing.T) {
			o := options(testDir(t))
			o.LogIdle = 10 * time.Millisecond
			a := open(t, o)
			info, h := create(t, a, "db", 16*mib, "a", "b")
			write(t, h, 0, 16*mib, '1')
			m := mirrorIn(t, a, info.ID, "a")
			if err := a.find1(t, info.ID).quiesce(); err != nil { // no marks are left
				t.Fatal(err)
			}
			if err := os.Rename(m.File, m.File+".away"); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the mirror is dropped", func() bool { return mirrorIn(t, a, info.ID, "a").State == driver.Broken })
			write(t, h, 5*mib, 512, '2')
			before := a.copied.Load()
			switch what {
			case "copied":
				b, err := os.ReadFile(m.File + ".away")
				if err == nil {
					err = os.WriteFile(m.File, b, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			case "cut":
				if err := os.Truncate(m.File+".away", 0); err != nil {
					t.Fatal(err)
				}
				fallthrough
			case "back":
				if err := os.Rename(m.File+".away", m.File); err != nil {
					t.Fatal(err)
				}
			}
			if what == "back" {
				eventually(t, "the mirror is back", func() bool { return mirrorIn(t, a, info.ID, "a").State == driver.Synchronized })
				if n := a.copied.Load() - before; n > 4*mib+regionSize {
					t.Errorf("%d bytes were copied", n)
				}
			} else {
				a.find1(t, info.ID).lookForReturned()
				if mirrorIn(t, a, info.ID, "a").State != driver.Broken {
					t.Fatal("a file that is not to be trusted was taken back")
				}
				if n := repaired(t, a, info.ID); n != 16*mib {
					t.Errorf("%d bytes were copied, want all", n)
				}
			}
			if same := mirrorIn(t, a, info.ID, "a").ID == m.ID; same != (what == "back") {
				t.Errorf("the same mirror: %v", same)
			}
			if got := mirrored(t, a, info.ID); got[5*mib] != '2' || !bytes.Equal(got[:mib], bytes.Repeat([]byte{'1'}, mib)) {
				t.Error("content")
			}
		})
	}
}

// A pool that is away at start costs a refill of what was written meanwhile.
func TestPoolAwayAtStart(t *testing.T) {
	o := options(testDir(t))
	o.LogIdle = 10 * time.Millisecond
	a := open(t, o)
	info, h := create(t, a, "db", 16*mib, "a", "b")
	write(t, h, 0, 16*mib, '1')
	h.Close()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	dir := o.Pools["a"]
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	a = open(t, o)
	h = openVolume(t, a, info.ID)
	write(t, h, 5*mib, 512, '2')
	if m := mirrorIn(t, a, info.ID, "a"); m.State != driver.Broken || m.Reason == "" {
		t.Fatalf("%+v", m)
	}
	h.Close()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	os.RemoveAll(dir)
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	a = open(t, o)
	eventually(t, "the mirror is back", func() bool { return mirrorIn(t, a, info.ID, "a").State == driver.Synchronized })
	if got := mirrored(t, a, info.ID); got[5*mib] != '2' {
		t.Error("content")
	}
	if n := a.copied.Load(); n != regionSize {
		t.Errorf("%d bytes were copied, want one region", n)
	}
}

// Prepare replaces what is broken instead of refusing, and says why it can't.
func TestPrepareRepairs(t *testing.T) {
	o, fs, _ := faulty(t)
	a := open(t, o)
	info, h := create(t, a, "db", 16*mib, "a", "b")
	write(t, h, 0, mib, '1')
	fs.set(failing("write", "a", syscall.EIO))
	write(t, h, 5*mib, 512, '2')
	err := a.Prepare(t.Context(), []driver.VolumeID{info.ID}, driver.PrepareOptions{Tag: "t", AllowUnmirrored: true})
	wantKind(t, err, driver.NotSynchronized)
	if !strings.Contains(err.Error(), "input/output error") {
		t.Errorf("the error does not say why: %v", err)
	}
	fs.set(nil)
	prepare(t, a, "t", info.ID)
	sameMirrors(t, a, info.ID)
	split(t, a, "t", info.ID)
}
