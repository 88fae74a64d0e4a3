package embedded

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
)

// The state directory is lost at a random moment under load: what was
// acknowledged is in the volumes, and splits of groups are whole or absent.
func TestRescanAfterKill(t *testing.T) {
	rounds := 6
	if testing.Short() {
		rounds = 3
	}
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for round := range rounds {
		dir := testDir(t)
		o := crashOptions(dir)
		labelled := func() bool {
			for _, pool := range o.Pools {
				if _, err := os.Stat(filepath.Join(pool, poolFile)); err != nil {
					return false
				}
			}
			return true
		}
		killWriter(t, dir, labelled, time.Duration(rng.IntN(400))*time.Millisecond)
		if err := os.RemoveAll(o.StateDir); err != nil {
			t.Fatal(err)
		}
		rep, err := Rescan(t.Context(), o, false)
		if err != nil || !rep.Written {
			t.Fatalf("round %d: %+v, %v", round, rep, err)
		}
		if err := checkAfterCrash(t, dir, true); err != nil {
			t.Fatalf("round %d: %v\n%+v", round, err, rep)
		}
	}
}

func TestRescan(t *testing.T) {
	o, _, ev := faulty(t)
	a := open(t, o)
	info, h := create(t, a, "db", 16*mib, "a", "b", "c")
	write(t, h, 0, mib, '1')
	s := split(t, a, "clean", info.ID)
	write(t, h, 0, mib, '2')
	one, h1 := create(t, a, "one", mib, "a")
	write(t, h1, 0, 4096, '7')
	h.Close()
	h1.Close()
	if _, err := Rescan(t.Context(), o, true); err == nil || !strings.Contains(err.Error(), "there is a catalogue") {
		t.Fatalf("rescan beside a catalogue: %v", err)
	}
	away := o.StateDir + ".lost"
	if err := os.Rename(o.StateDir, away); err != nil {
		t.Fatal(err)
	}
	if _, err := Rescan(t.Context(), o, true); kindOf(err) != driver.Busy {
		t.Fatalf("rescan of pools in use: %v", err)
	}
	if err := os.Rename(away, o.StateDir); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if err := os.RemoveAll(o.StateDir); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "rescan") {
		t.Fatalf("opening without the catalogue: %v", err)
	}
	if err := os.RemoveAll(o.StateDir); err != nil {
		t.Fatal(err)
	}
	stray := filepath.Join(o.Pools["a"], "db", "stray.raw")
	if err := os.WriteFile(stray, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}

	rep, err := Rescan(t.Context(), o, true)
	if err != nil || rep.Written || len(rep.Volumes) != 2 || len(rep.Volumes[0].Mirrors) != 2 || len(rep.Snapshots) != 1 ||
		len(rep.LeftOver) != 1 || rep.LeftOver[0] != stray || len(rep.Notes) != 1 {
		t.Fatalf("dry run: %+v, %v", rep, err)
	}
	if _, err := os.Stat(o.StateDir); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("a dry run made something")
	}
	if rep, err = Rescan(t.Context(), o, false); err != nil || !rep.Written {
		t.Fatalf("%+v, %v", rep, err)
	}
	a = open(t, o)
	if err := a.WaitInSync(t.Context(), info.ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is told that all is compared", func() bool { return ev.count(MapDamaged) > 0 && ev.count(Recovered) > 0 })
	if got := mirrored(t, a, info.ID); got[0] != '2' {
		t.Fatal("content lost")
	}
	if got := mirrored(t, a, one.ID); got[0] != '7' {
		t.Fatal("content lost")
	}
	ss, err := a.Lookup(t.Context(), "clean")
	if err != nil || len(ss) != 1 || ss[0].ID != s.ID || ss[0].NAA != s.NAA || !ss[0].At.Equal(s.At) {
		t.Fatalf("%+v, want %+v: %v", ss, s, err)
	}
	d, err := a.Open(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, d, 0, 4096); got[0] != '1' {
		t.Fatal("the split's content is lost")
	}
	d.(io.Closer).Close()
	if err := a.Resync(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	prepare(t, a, "t2", info.ID)
	if got := mirrored(t, a, info.ID); got[0] != '2' || len(a.Snapshots()) != 0 {
		t.Fatal("after the resync")
	}
}

// A mirror that was dropped is not trusted, though its own label, which could
// not be written any more, claims that it is in sync.
func TestRescanKnowsStaleMirrors(t *testing.T) {
	o, fs, _ := faulty(t)
	a := open(t, o)
	info, h := create(t, a, "db", 16*mib, "a", "b")
	write(t, h, 0, mib, '1')
	eventually(t, "labels", func() bool {
		_, err := os.Stat(labelPath(info.Replicas[0].File))
		return err == nil
	})
	before, err := os.ReadFile(labelPath(info.Replicas[0].File))
	if err != nil {
		t.Fatal(err)
	}
	fs.set(failing("write", "a", errors.New("gone")))
	write(t, h, 0, mib, '2')
	fs.set(nil)
	h.Close()
	a.Close()
	if err := os.WriteFile(labelPath(info.Replicas[0].File), before, 0o600); err != nil {
		t.Fatal(err)
	}
	os.RemoveAll(o.StateDir)
	if _, err := Rescan(t.Context(), o, false); err != nil {
		t.Fatal(err)
	}
	a = open(t, o)
	if got := mirrored(t, a, info.ID); got[0] != '2' {
		t.Fatal("a stale mirror was trusted")
	}
	if vi, _ := a.VolumeInfo(info.ID); vi.Mirrors != 1 {
		t.Fatalf("%+v", vi)
	}
}

// The labels of version 1 are enough.
func TestRescanV1(t *testing.T) {
	dir := testDir(t)
	unpack(t, goldenV1, dir)
	o := options(dir)
	os.RemoveAll(o.StateDir)
	rep, err := Rescan(t.Context(), o, false)
	if err != nil {
		t.Fatal(err)
	}
	a := open(t, o)
	for _, v := range a.Volumes() {
		if err := a.WaitInSync(t.Context(), v.ID); err != nil {
			t.Fatal(err)
		}
	}
	found := map[string]bool{}
	for _, v := range rep.Volumes {
		found[v.Name] = true
		h, err := a.OpenVolume(driver.VolumeID(v.Name), "test")
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		switch v.Name {
		case "whole":
			wantGolden(t, h, "whole", 1, 0, 40, 127)
		case "split":
			wantGolden(t, h, "split", 2, 0)
			wantGolden(t, h, "split", 3, 32)
		case "broken":
			wantGolden(t, h, "broken", 2, 0)
		}
		sameMirrors(t, a, driver.VolumeID(v.Name))
	}
	if !found["whole"] || !found["split"] || !found["broken"] || len(rep.Snapshots) != 2 {
		t.Fatalf("%+v", rep)
	}
}
