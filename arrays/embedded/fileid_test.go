package embedded

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
)

func exchange2(t *testing.T, a, b string) {
	t.Helper()
	for _, r := range [][2]string{{a, a + ".tmp"}, {b, a}, {a + ".tmp", b}} {
		if err := os.Rename(r[0], r[1]); err != nil {
			t.Fatal(err)
		}
	}
}

// twoVolumes are "db", full of '1', and "web", full of '2', both stable.
func twoVolumes(t *testing.T, a *Array, pools ...string) (db, web VolumeInfo) {
	t.Helper()
	db, h := create(t, a, "db", 4*mib, pools...)
	write(t, h, 0, 4*mib, '1')
	web, g := create(t, a, "web", 4*mib, pools...)
	write(t, g, 0, 4*mib, '2')
	for _, d := range []*Volume{h, g} {
		if err := d.Sync(); err != nil {
			t.Fatal(err)
		}
		d.Close()
	}
	return db, web
}

func wantContent(t *testing.T, a *Array, ref driver.VolumeID, c byte) {
	t.Helper()
	h, err := a.OpenVolume(ref, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if got := read(t, h, 0, 4*mib); !bytes.Equal(got, bytes.Repeat([]byte{c}, 4*mib)) {
		t.Fatalf("volume %s lost stable data", ref)
	}
}

// Two volumes' files exchanged by hand between starts: neither is read, written
// or removed for the wrong one, and both come back, by a repair or by themselves.
func TestFilesExchangedBetweenStarts(t *testing.T) {
	for _, how := range []string{"repaired", "put back"} {
		t.Run(how, func(t *testing.T) {
			ev := &collector{}
			o := options(testDir(t))
			o.OnEvent, o.LogIdle = ev.add, 2*time.Millisecond
			a := open(t, o)
			db, web := twoVolumes(t, a, "a", "b")
			a.Close()
			exchange2(t, db.Replicas[0].File, web.Replicas[0].File)

			a = open(t, o)
			for _, v := range []driver.VolumeID{db.ID, web.ID} {
				vi, _ := a.VolumeInfo(v)
				if vi.Mirrors != 1 || vi.Replicas[0].State != driver.Broken || !strings.Contains(vi.Replicas[0].Reason, "put each back") {
					t.Fatalf("%+v", vi)
				}
			}
			wantContent(t, a, db.ID, '1')
			wantContent(t, a, web.ID, '2')
			if how == "repaired" {
				if err := a.RepairVolume(t.Context(), db.ID); err != nil {
					t.Fatal(err)
				}
				if b, err := os.ReadFile(db.Replicas[0].File); err != nil || b[0] != '2' {
					t.Fatalf("web's file was not left alone: %v", err)
				}
				if err := a.RepairVolume(t.Context(), web.ID); err != nil {
					t.Fatal(err)
				}
			} else {
				exchange2(t, db.Replicas[0].File, web.Replicas[0].File)
			}
			for v, c := range map[driver.VolumeID]byte{db.ID: '1', web.ID: '2'} {
				eventually(t, "both mirrors are in sync", func() bool {
					vi, _ := a.VolumeInfo(v)
					return vi.Mirrors == 2
				})
				sameMirrors(t, a, v)
				wantContent(t, a, v, c)
			}
			a.Close()
			if ev.count(FileReplaced) != 2 || how == "repaired" && ev.count(LeftOver) != 2 {
				t.Fatalf("%+v", ev.events)
			}
		})
	}
}

// The only mirrors of two volumes exchanged: both stay offline and whole.
func TestOnlyFilesExchanged(t *testing.T) {
	ev := &collector{}
	o := options(testDir(t))
	o.OnEvent = ev.add
	a := open(t, o)
	db, web := twoVolumes(t, a, "a")
	a.Close()
	exchange2(t, db.Replicas[0].File, web.Replicas[0].File)
	a = open(t, o)
	for _, v := range []driver.VolumeID{db.ID, web.ID} {
		if vi, _ := a.VolumeInfo(v); vi.State != driver.Broken {
			t.Fatalf("%+v", vi)
		}
	}
	a.Close()
	if ev.count(VolumeOffline) != 2 {
		t.Fatalf("%+v", ev.events)
	}
	exchange2(t, db.Replicas[0].File, web.Replicas[0].File)
	a = open(t, o)
	wantContent(t, a, db.ID, '1')
	wantContent(t, a, web.ID, '2')

	// Deleting a volume leaves another's file alone that lies in its place.
	a.Close()
	exchange2(t, db.Replicas[0].File, web.Replicas[0].File)
	a = open(t, o)
	if err := a.DeleteVolume(t.Context(), db.ID); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if err := os.Rename(db.Replicas[0].File, web.Replicas[0].File); err != nil {
		t.Fatal(err)
	}
	a = open(t, o)
	wantContent(t, a, web.ID, '2')
}

func TestFilesExchangedWhileRunning(t *testing.T) {
	ev := &collector{}
	o := options(testDir(t))
	o.OnEvent, o.LogIdle = ev.add, 2*time.Millisecond
	a := open(t, o)
	db, web := twoVolumes(t, a, "a", "b")
	h, err := a.OpenVolume(db.ID, "test")
	if err != nil {
		t.Fatal(err)
	}
	exchange2(t, db.Replicas[0].File, web.Replicas[0].File)
	write(t, h, 0, mib, '1') // to the files that are open
	eventually(t, "both lose a mirror", func() bool { return ev.count(MirrorDropped) == 2 })
	write(t, h, mib, mib, '1')
	if err := h.Sync(); err != nil {
		t.Fatal(err)
	}
	h.Close()
	a.Close()
	a = open(t, o)
	wantContent(t, a, db.ID, '1')
	wantContent(t, a, web.ID, '2')
	exchange2(t, db.Replicas[0].File, web.Replicas[0].File)
	for _, v := range []driver.VolumeID{db.ID, web.ID} {
		eventually(t, "the mirrors are back", func() bool {
			vi, _ := a.VolumeInfo(v)
			return vi.Mirrors == 2
		})
		sameMirrors(t, a, v)
	}
	wantContent(t, a, db.ID, '1')
	wantContent(t, a, web.ID, '2')
}

// copied puts a copy in a file's place, as cp does on a new disk.
func copied(t *testing.T, file string, change func(*os.File), at time.Time) {
	t.Helper()
	src, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Create(file + ".copy")
	if err == nil {
		_, err = io.Copy(dst, src)
	}
	if err != nil {
		t.Fatal(err)
	}
	change(dst)
	dst.Close()
	if err := os.Chtimes(file+".copy", at, at); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".copy", file); err != nil {
		t.Fatal(err)
	}
}

// All files of a volume are others, as after a restore: they are used, the one
// that was written last being right where they differ.
func TestAllFilesReplaced(t *testing.T) {
	ev := &collector{}
	o := options(testDir(t))
	o.OnEvent = ev.add
	a := open(t, o)
	db, web := twoVolumes(t, a, "a", "b")
	a.Close()
	old := func(f *os.File) {
		if _, err := f.WriteAt([]byte("old"), 2*mib); err != nil {
			t.Fatal(err)
		}
	}
	copied(t, db.Replicas[0].File, old, time.Now().Add(-time.Hour))
	copied(t, db.Replicas[1].File, func(*os.File) {}, time.Now())
	copied(t, web.Replicas[1].File, old, time.Now()) // its other one is there

	a = open(t, o)
	wantContent(t, a, db.ID, '1')
	wantContent(t, a, web.ID, '2')
	if err := a.WaitInSync(t.Context(), db.ID); err != nil {
		t.Fatal(err)
	}
	sameMirrors(t, a, db.ID)
	if vi, _ := a.VolumeInfo(db.ID); vi.Mirrors != 2 {
		t.Fatalf("%+v", vi)
	}
	if vi, _ := a.VolumeInfo(web.ID); vi.Mirrors != 1 || vi.Replicas[1].State != driver.Broken {
		t.Fatalf("%+v", vi)
	}
	a.Close()
	if ev.count(FileReplaced) != 2 {
		t.Fatalf("%+v", ev.events)
	}
	a = open(t, o) // once known, nothing more is said
	wantContent(t, a, db.ID, '1')
	a.Close()
	if ev.count(FileReplaced) != 2 {
		t.Fatalf("%+v", ev.events)
	}
}

// A split's file exchanged with another's is refused.
func TestSplitsExchanged(t *testing.T) {
	o := options(testDir(t))
	a := open(t, o)
	db, web := twoVolumes(t, a, "a", "b", "c")
	prepare(t, a, "t", db.ID)
	prepare(t, a, "u", web.ID)
	s, u := split(t, a, "t", db.ID), split(t, a, "u", web.ID)
	files := map[driver.SnapshotID]string{}
	for _, x := range a.Snapshots() {
		files[x.ID] = x.File
	}
	a.Close()
	exchange2(t, files[s.ID], files[u.ID])
	a = open(t, o)
	for _, x := range a.Snapshots() {
		if x.State != driver.Invalid || !strings.Contains(x.Reason, "exchanged") {
			t.Fatalf("%+v", x)
		}
	}
	a.Close()
	exchange2(t, files[s.ID], files[u.ID])
	a = open(t, o)
	for _, x := range a.Snapshots() {
		if x.State == driver.Invalid {
			t.Fatalf("%+v", x)
		}
	}
}

// A file cut short between starts is not used, and filled again in full.
func TestFileTruncatedBetweenStarts(t *testing.T) {
	ev := &collector{}
	o := options(testDir(t))
	o.OnEvent = ev.add
	a := open(t, o)
	db, _ := twoVolumes(t, a, "a", "b")
	a.Close()
	if err := os.Truncate(db.Replicas[0].File, mib); err != nil {
		t.Fatal(err)
	}
	a = open(t, o)
	wantContent(t, a, db.ID, '1')
	if err := a.RepairVolume(t.Context(), db.ID); err != nil {
		t.Fatal(err)
	}
	if err := a.WaitInSync(t.Context(), db.ID); err != nil {
		t.Fatal(err)
	}
	sameMirrors(t, a, db.ID)
	wantContent(t, a, db.ID, '1')
	a.Close()
	if ev.count(MirrorDropped) != 1 {
		t.Fatalf("%+v", ev.events)
	}
}
