package embedded

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"

	"github.com/cleave-san/cleave/arrays/driver"
)

// spoil changes a mirror's file behind the array's back.
func spoil(t *testing.T, file string, off int64, p []byte) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

func scrubbed(t *testing.T, a *Array, v driver.VolumeID, repair bool) ScrubReport {
	t.Helper()
	r, err := a.Scrub(t.Context(), v, ScrubOptions{Repair: repair})
	if err != nil {
		t.Fatal(err)
	}
	if r.Ended.IsZero() || r.Done != r.Size || r.Reason != "" {
		t.Fatalf("it is not at its end: %+v", r)
	}
	return r
}

func TestScrubRepairsFromTheMajority(t *testing.T) {
	ev := &collector{}
	o := options(testDir(t))
	o.OnEvent = ev.add
	a := open(t, o)
	info, h := create(t, a, "db", 8*mib+512, "a", "b", "c")
	write(t, h, 0, mib, '1')
	write(t, h, 6*mib, mib, '2')
	write(t, h, 8*mib, 512, '3')
	if err := h.Sync(); err != nil {
		t.Fatal(err)
	}
	r := scrubbed(t, a, info.ID, true)
	if r.Differing != 0 || r.Mirrors != 3 || r.Compared < 2*mib || r.Compared > 4*mib {
		t.Fatalf("equal mirrors, mostly holes: %+v", r)
	}

	// Each mirror is wrong somewhere, twice in one chunk; once data is where the
	// others have a hole, and once in the last, short block.
	want := mirrored(t, a, info.ID)
	file := func(i int) string { return info.Replicas[i].File }
	junk := bytes.Repeat([]byte{'x'}, 8192)
	spoil(t, file(0), 4096, junk)
	spoil(t, file(1), 4096+8192, junk[:1])
	spoil(t, file(2), 5*mib, junk)
	spoil(t, file(0), 8*mib+511, junk[:1])

	r = scrubbed(t, a, info.ID, false)
	if r.Places != 4 || r.Differing != 8192+4096+8192+512 || r.Repaired != 0 || len(r.Differences) != 4 {
		t.Fatalf("%+v", r)
	}
	d := r.Differences[0]
	if d.Off != 4096 || d.Len != 8192 || d.Repaired || d.Mirrors[0].SHA256 != fmt.Sprintf("%x", sha256.Sum256(junk)) || d.Mirrors[1].SHA256 != d.Mirrors[2].SHA256 {
		t.Fatalf("%+v", d)
	}
	r = scrubbed(t, a, info.ID, true)
	if r.Places != 4 || r.Left() != 0 || r.Repaired != r.Differing || !r.Differences[3].Repaired {
		t.Fatalf("%+v", r)
	}
	if got := mirrored(t, a, info.ID); !bytes.Equal(got, want) {
		t.Fatal("what the majority held was lost")
	}
	if r = scrubbed(t, a, info.ID, false); r.Differing != 0 {
		t.Fatalf("after the repair: %+v", r)
	}
	vi, _ := a.VolumeInfo(info.ID)
	if vi.Scrub == nil || vi.Scrub.Ended.IsZero() || vi.Mirrors != 3 {
		t.Fatalf("%+v", vi)
	}
	a.Close()
	if ev.count(ScrubDone) != 4 || ev.count(ScrubDiffers) != 2 {
		t.Fatalf("events: %+v", ev.events)
	}
}

// Where nobody knows which is right, nothing is changed.
func TestScrubWithoutMajority(t *testing.T) {
	for n, pools := range [][]string{2: {"a", "b"}, 3: {"a", "b", "c"}} {
		if pools == nil {
			continue
		}
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			a := open(t, options(testDir(t)))
			info, h := create(t, a, "db", 16*mib, pools...)
			write(t, h, 0, mib, '1')
			var before [][]byte
			for i, m := range info.Replicas {
				spoil(t, m.File, 8192, []byte{byte('A' + i)})
				b, err := os.ReadFile(m.File)
				if err != nil {
					t.Fatal(err)
				}
				before = append(before, b)
			}
			r := scrubbed(t, a, info.ID, true)
			if r.Places != 1 || r.Left() != 4096 || r.Repaired != 0 {
				t.Fatalf("%+v", r)
			}
			for i, m := range info.Replicas {
				if b, err := os.ReadFile(m.File); err != nil || !bytes.Equal(b, before[i]) {
					t.Fatalf("mirror %d was changed (%v)", i, err)
				}
			}
		})
	}
}

// A report has a bound, whatever is wrong.
func TestScrubListIsBounded(t *testing.T) {
	a := open(t, options(testDir(t)))
	info, h := create(t, a, "db", 16*mib, "a", "b")
	write(t, h, 0, 2*mib, '1')
	for i := int64(0); i < 100; i++ {
		spoil(t, info.Replicas[1].File, i*2*scrubBlock, []byte{'x'})
	}
	r := scrubbed(t, a, info.ID, false)
	if r.Places != 100 || r.Differing != 100*scrubBlock || len(r.Differences) != keptDifferences {
		t.Fatalf("%d places, %d bytes, %d listed", r.Places, r.Differing, len(r.Differences))
	}
}

// Writes that are under way are no differences, and none is lost to a repair.
func TestScrubUnderWrites(t *testing.T) {
	o := options(testDir(t))
	a := open(t, o)
	info, h := create(t, a, "db", 8*mib, "a", "b", "c")
	write(t, h, 0, 8*mib, '0')
	spoil(t, info.Replicas[1].File, 7*mib, []byte("junk"))
	const writers, area = 4, 7 * mib
	stop := make(chan struct{})
	last := make([][]byte, writers)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 7))
			last[w] = bytes.Repeat([]byte{'0'}, area/writers)
			for {
				select {
				case <-stop:
					return
				default:
				}
				n := 512 * (1 + rng.IntN(64))
				off := rng.IntN((area/writers-n)/512) * 512
				p := bytes.Repeat([]byte{byte(rng.IntN(256))}, n)
				if rng.IntN(8) == 0 {
					clear(p)
					if err := h.Trim(int64(w*area/writers+off), int64(n)); err != nil {
						t.Error(err)
					}
				} else if _, err := h.WriteAt(p, int64(w*area/writers+off)); err != nil {
					t.Error(err)
				}
				copy(last[w][off:], p)
			}
		})
	}
	for i := range 4 {
		r := scrubbed(t, a, info.ID, true)
		if want := map[bool]int64{true: scrubBlock}[i == 0]; r.Differing != want || r.Repaired != want {
			t.Errorf("pass %d: %+v", i, r)
		}
	}
	// Mirrors come and go meanwhile.
	for i := range 2 {
		tag := driver.Tag(fmt.Sprint("t", i))
		if err := a.StartScrub(info.ID, ScrubOptions{Repair: true}); err != nil {
			t.Fatal(err)
		}
		prepare(t, a, tag, info.ID)
		s := split(t, a, tag, info.ID)
		if r, err := a.WaitScrub(t.Context(), info.ID); err != nil || r.Differing != 0 {
			t.Errorf("scrub beside a split: %+v, %v", r, err)
		}
		if err := a.Resync(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		if err := a.WaitInSync(t.Context(), info.ID); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
	got := mirrored(t, a, info.ID)
	for w := range writers {
		if !bytes.Equal(got[w*area/writers:(w+1)*area/writers], last[w]) {
			t.Errorf("writer %d lost a write", w)
		}
	}
}

func TestScrubOneAtATimeAndStopped(t *testing.T) {
	o := options(testDir(t))
	o.ResyncRate = 1 << 20 // 16 s, if it is not stopped
	a := open(t, o)
	info, h := create(t, a, "db", 64*mib, "a", "b")
	write(t, h, 0, 16*mib, '1')
	alone, _ := create(t, a, "alone", mib, "a")
	wantKind(t, a.StartScrub(alone.ID, ScrubOptions{}), driver.NotSynchronized)
	wantKind(t, a.StartScrub("none", ScrubOptions{}), driver.NotFound)
	_, err := a.WaitScrub(t.Context(), info.ID)
	wantKind(t, err, driver.NotFound)
	if err := a.StopScrub(info.ID); err != nil {
		t.Fatal(err)
	}

	if err := a.StartScrub(info.ID, ScrubOptions{}); err != nil {
		t.Fatal(err)
	}
	wantKind(t, a.StartScrub(info.ID, ScrubOptions{}), driver.Busy)
	eventually(t, "its progress and the time left are told", func() bool {
		vi, _ := a.VolumeInfo(info.ID)
		return vi.Scrub.Done > 0 && vi.Scrub.Rate > 0 && vi.Scrub.Remaining > 0
	})
	if err := a.StopScrub(info.ID); err != nil {
		t.Fatal(err)
	}
	r, err := a.WaitScrub(t.Context(), info.ID)
	if !errors.Is(err, errScrubStopped) || r.Reason == "" || r.Done >= r.Size {
		t.Fatalf("%+v, %v", r, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := a.Scrub(ctx, info.ID, ScrubOptions{})
		done <- err
	}()
	eventually(t, "the next one is under way", func() bool {
		vi, _ := a.VolumeInfo(info.ID)
		return vi.Scrub.Ended.IsZero()
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := a.StartScrub(info.ID, ScrubOptions{}); err != nil {
		t.Fatal(err)
	}
	h.Close()
	if err := a.DeleteVolume(t.Context(), info.ID); err != nil { // ends it
		t.Fatal(err)
	}
	info, h = create(t, a, "db", 64*mib, "a", "b")
	write(t, h, 0, 16*mib, '1')
	if err := a.StartScrub(info.ID, ScrubOptions{}); err != nil {
		t.Fatal(err)
	}
	a.Close() // does as well
}

// A mirror that can't be read loses its place, and the others are compared.
func TestScrubFindsUnreadableMirror(t *testing.T) {
	o, fs, ev := faulty(t)
	a := open(t, o)
	info, h := create(t, a, "db", 16*mib, "a", "b", "c")
	write(t, h, 0, mib, '1')
	fs.set(failing("read", "b", syscall.EIO))
	r := scrubbed(t, a, info.ID, true)
	if r.Mirrors != 2 || r.Differing != 0 {
		t.Fatalf("%+v", r)
	}
	a.Close()
	if ev.count(MirrorDropped) != 1 {
		t.Fatalf("%+v", ev.events)
	}
}
