package disktest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/arrays/embedded/disk"
	"github.com/cleave-san/cleave/lun"
)

const tries = 500 // seeds

func write(t testing.TB, fs disk.FS, name, content string) disk.File {
	t.Helper()
	f, err := fs.OpenFile(name, os.O_RDWR|os.O_CREATE)
	if err == nil {
		_, err = f.WriteAt([]byte(content), 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// read is a file's content, or that it is not there.
func read(fs disk.FS, name string) string {
	b, err := disk.ReadFile(fs, name, 1<<20)
	if err != nil {
		return "none"
	}
	return string(b)
}

// outcomes cuts with many seeds and counts what comes of it.
func outcomes(fs *FS, see func(*FS) string) map[string]int {
	m := map[string]int{}
	for seed := range uint64(tries) {
		m[see(fs.Cut(seed))]++
	}
	return m
}

// Of two sectors written and not synced, any may be there, and neither; and a
// name that was not synced may be lost whatever became of the content.
func TestCutGivesEveryOutcome(t *testing.T) {
	fs := New()
	f := write(t, fs, "/f", strings.Repeat("a", 2*sector))
	if err := errors.Join(f.Sync(), fs.SyncDir("/")); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(strings.Repeat("b", 2*sector)), 0); err != nil {
		t.Fatal(err)
	}
	got := outcomes(fs, func(c *FS) string { s := read(c, "/f"); return s[:1] + s[sector:sector+1] })
	for _, want := range []string{"aa", "ab", "ba", "bb"} {
		if got[want] == 0 {
			t.Errorf("never seen: %s, of %v", want, got)
		}
	}
	if len(got) != 4 {
		t.Errorf("got %v", got)
	}
	g := write(t, fs, "/g", "g")
	got = outcomes(fs, func(c *FS) string { return read(c, "/g") })
	if got["none"] == 0 || got[""] == 0 || got["g"] == 0 {
		t.Errorf("a new file: %v", got)
	}
	if err := g.Sync(); err != nil {
		t.Fatal(err)
	}
	got = outcomes(fs, func(c *FS) string { return read(c, "/g") })
	if got["none"] == 0 || got["g"] == 0 || len(got) != 2 {
		t.Errorf("a new file that was synced, in a directory that was not: %v", got)
	}
}

// The size may be lost and the data not, and the other way round.
func TestCutLosesSizes(t *testing.T) {
	fs := New()
	f := write(t, fs, "/f", "x")
	if err := errors.Join(f.Sync(), fs.SyncDir("/"), f.Truncate(3*sector)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("y"), sector); err != nil {
		t.Fatal(err)
	}
	got := outcomes(fs, func(c *FS) string {
		s := read(c, "/f")
		return fmt.Sprint(len(s), strings.Contains(s, "y"))
	})
	for _, want := range []string{"1 false", "1536 false", "1536 true"} {
		if got[want] == 0 {
			t.Errorf("never seen: %s, of %v", want, got)
		}
	}
}

// What was synced is there, whatever came after; and a cut holds nothing open
// and nothing locked, and is a file system of its own.
func TestCutKeepsWhatIsStable(t *testing.T) {
	fs := New()
	if err := disk.MkdirAll(fs, "/a/b"); err != nil {
		t.Fatal(err)
	}
	f := write(t, fs, "/a/b/f", "stable")
	if err := errors.Join(f.Sync(), fs.SyncDir("/a/b")); err != nil {
		t.Fatal(err)
	}
	if _, err := fs.Lock("/lock"); err != nil {
		t.Fatal(err)
	}
	write(t, fs, "/a/b/g", "not stable")
	got := outcomes(fs, func(c *FS) string {
		if _, err := c.Lock("/lock"); err != nil {
			return err.Error()
		}
		s := read(c, "/a/b/f")
		write(t, c, "/a/b/f", "STABLE")
		return s
	})
	if got["stable"] != tries || read(fs, "/a/b/f") != "stable" {
		t.Errorf("got %v", got)
	}
	if _, err := fs.Lock("/lock"); !errors.Is(err, disk.ErrLocked) {
		t.Errorf("second lock: %v", err)
	}
}

func TestOneSeedOneOutcome(t *testing.T) {
	fs := New()
	for i := range 20 {
		write(t, fs, fmt.Sprintf("/f%d", i), strings.Repeat("x", 3000))
	}
	see := func(c *FS) (s string) {
		for _, name := range c.Files() {
			s += name + read(c, name)
		}
		return s
	}
	for seed := range uint64(50) {
		if see(fs.Cut(seed)) != see(fs.Cut(seed)) {
			t.Fatalf("seed %d gives two outcomes", seed)
		}
	}
}

// Replace holds what it promises at every sync point; and without any one of its
// syncs it is caught, so that the layer sees what it is for.
func TestReplaceIsAtomic(t *testing.T) {
	type variant struct {
		name             string
		sync, rename, sd bool
		caught           bool
	}
	for _, v := range []variant{
		{"as it is", true, true, true, false},
		{"without the file's sync", false, true, true, true},
		{"without the directory's sync", true, true, false, true},
		{"written in place", true, false, true, true},
	} {
		bad := ""
		for seed := range uint64(tries) {
			fs := New()
			f := write(t, fs, "/r", "one")
			if err := errors.Join(f.Sync(), fs.SyncDir("/")); err != nil {
				t.Fatal(err)
			}
			fs.OnSync(func(p Point) {
				got := read(fs.Cut(seed^uint64(p.N)<<32), "/r")
				if got != "one" && got != "two" && got != "three" && bad == "" {
					bad = fmt.Sprintf("half of it: %q", got)
				}
			})
			for _, content := range []string{"two", "three"} {
				if err := replace(fs, "/r", content, v.sync, v.rename, v.sd); err != nil {
					t.Fatal(err)
				}
				if got := read(fs.Cut(seed), "/r"); got != content && bad == "" {
					bad = fmt.Sprintf("it holds %q after %q was done", got, content)
				}
			}
		}
		if (bad != "") != v.caught {
			t.Errorf("%s: %s", v.name, bad)
		}
	}
}

// replace is disk.Replace, or less.
func replace(fs disk.FS, name, content string, sync, rename, syncDir bool) error {
	if sync && rename && syncDir {
		return disk.Replace(fs, name, []byte(content))
	}
	tmp := name + disk.NewSuffix
	if !rename {
		tmp = name
	}
	f, err := fs.OpenFile(tmp, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(content), 0)
	if err == nil && sync {
		err = errors.Join(f.Truncate(int64(len(content))), f.Sync())
	}
	if err == nil && rename {
		err = fs.Rename(tmp, name)
	}
	if err == nil && syncDir {
		err = fs.SyncDir(filepath.Dir(name))
	}
	return err
}

// The layer is a file system like the host's: the same calls have the same
// effects.
func TestLikeTheHost(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	host, mem, dir := disk.OS(), New(), t.TempDir()
	if err := disk.MkdirAll(mem, dir); err != nil {
		t.Fatal(err)
	}
	for range 400 {
		name := filepath.Join(dir, fmt.Sprint("f", rng.IntN(3)))
		other := filepath.Join(dir, fmt.Sprint("f", rng.IntN(3)))
		kind, off, n := rng.IntN(8), rng.Int64N(20_000), 1+rng.Int64N(9_000)
		b := []byte(strings.Repeat(string(rune('a'+rng.IntN(26))), int(n)))
		do := func(fs disk.FS) (string, error) {
			switch kind {
			case 0:
				return "", fs.Rename(name, other)
			case 1:
				return "", fs.Remove(name)
			}
			flag := os.O_RDWR
			if kind < 4 {
				flag |= os.O_CREATE
			}
			f, err := fs.OpenFile(name, flag)
			if err != nil {
				return "", err
			}
			defer f.Close()
			switch kind {
			case 2, 3, 4:
				_, err = f.WriteAt(b, off)
			case 5:
				err = f.PunchHole(off, n)
			case 6:
				err = f.Truncate(off)
			}
			if err != nil {
				return "", err
			}
			fi, err := f.Stat()
			if err != nil {
				return "", err
			}
			var at int64
			err = errors.Join(f.Sync(), f.Extents(0, fi.Size(), func(x lun.Extent) error {
				if x.Off != at || x.Len <= 0 {
					return fmt.Errorf("extent %+v at %d", x, at)
				}
				at += x.Len
				return nil
			}))
			return fmt.Sprint(fi.Size(), at), err
		}
		a, aerr := do(host)
		m, merr := do(mem)
		if a != m || (aerr == nil) != (merr == nil) || errors.Is(aerr, os.ErrNotExist) != errors.Is(merr, os.ErrNotExist) {
			t.Fatalf("kind %d: %q, %v on the host; %q, %v here", kind, a, aerr, m, merr)
		}
		x, _ := host.ReadDir(dir)
		y, _ := mem.ReadDir(dir)
		if fmt.Sprint(x) != fmt.Sprint(y) || read(host, name) != read(mem, name) {
			t.Fatalf("kind %d of %s at %d, %d: the two differ", kind, name, off, n)
		}
	}
}
