package engine_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/engine"
	"github.com/cleave-san/cleave/orchestrator/journal"
)

// mortal is a journal whose process dies at its n-th Put: before the record is
// durable, or just after. Dying is that nothing of that goroutine ever runs
// again, not even what it deferred.
type mortal struct {
	journal.Journal
	mu     sync.Mutex
	puts   int
	dieAt  int
	before bool
	died   chan struct{}
	dead   bool
}

func (m *mortal) Put(r journal.Record) error {
	m.mu.Lock()
	m.puts++
	die := m.puts == m.dieAt
	var err error
	if !m.dead && !(die && m.before) {
		err = m.Journal.Put(r)
	}
	if die {
		m.dieLocked() // not earlier: what comes after a death must find all that was written
	}
	dead := m.dead
	m.mu.Unlock()
	if dead {
		select {} // the process is gone
	}
	return err
}

// dieLocked is the moment of death.
func (m *mortal) dieLocked() {
	if !m.dead {
		m.dead = true
		close(m.died)
	}
}

func (m *mortal) isDead() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead
}

// dieHere dies outside the journal.
func (m *mortal) dieHere() {
	m.mu.Lock()
	m.dieLocked()
	m.mu.Unlock()
	select {}
}

// TestKilledAtEveryJournalStep cuts the control plane off at every single
// write of the journal, on both sides of it. The next one must leave nothing
// behind: every set is aborted with a reason, or ready with all it promises.
func TestKilledAtEveryJournalStep(t *testing.T) {
	killedAtEveryStep(t, func(t *testing.T) *world { return newMortalWorld(t, online("db"), offline("legacy")) })
}

// The same where the set spans two arrays that are armed and committed.
func TestKilledAtEveryJournalStepOfTwoArrays(t *testing.T) {
	killedAtEveryStep(t, func(t *testing.T) *world { return twoArrays(t, true) })
}

// The same where their disks are files on one volume of the host.
func TestKilledAtEveryJournalStepOnAHostVolume(t *testing.T) {
	killedAtEveryStep(t, func(t *testing.T) *world {
		return onHostVolume(newMortalWorld(t, file(online("db")), file(offline("legacy"))))
	})
}

func killedAtEveryStep(t *testing.T, open func(t *testing.T) *world) {
	puts := countPuts(t, open(t))
	if puts < 8 {
		t.Fatalf("a set writes the journal %d times only: the test cuts nothing", puts)
	}
	t.Logf("%d journal writes, each cut before and after", puts)
	for n := 1; n <= puts; n++ {
		for _, before := range []bool{true, false} {
			t.Run(fmt.Sprintf("put %d before=%v", n, before), func(t *testing.T) { killAt(t, open(t), n, before) })
		}
	}
}

func request() orchestrator.Request {
	return orchestrator.Request{VMs: []string{"db", "legacy"}, Initiators: []string{initiator}, ExposeDirty: true}
}

// countPuts runs a set and its release without dying.
func countPuts(t *testing.T, w *world) int {
	m := &mortal{Journal: journal.NewMemory(), died: make(chan struct{})}
	e := w.engine(m)
	defer e.Close()
	set := create(t, e, request())
	wantState(t, set, orchestrator.StateReady)
	if _, err := e.Release(t.Context(), set.ID); err != nil {
		t.Fatal(err)
	}
	return m.puts
}

func killAt(t *testing.T, w *world, n int, before bool) {
	disk := journal.NewMemory()
	kill(t, w, disk, &mortal{Journal: disk, dieAt: n, before: before, died: make(chan struct{})})
}

// kill runs a set until its process dies, and checks what the next one makes of
// it.
func kill(t *testing.T, w *world, disk journal.Journal, m *mortal) {
	first := w.engine(m)
	whole := make(chan struct{})
	go func() {
		defer close(whole)
		set, err := first.Create(t.Context(), request())
		if err != nil {
			return
		}
		if set, err = first.Wait(t.Context(), set.ID, nil); err == nil {
			first.Release(t.Context(), set.ID)
		}
	}()
	select {
	case <-m.died:
	case <-whole:
		t.Fatalf("the set was over after %d writes: the cut was never made", m.puts)
	}
	w.writer.ProcessDied() // the guards see their launcher die

	second := w.engine(disk)
	defer second.Close()
	recs, err := disk.All()
	if err != nil {
		t.Fatal(err)
	}
	for _, rec := range recs {
		set, err := second.Wait(t.Context(), rec.Set.ID, nil)
		if err != nil {
			t.Fatal(err)
		}
		switch set.State {
		case orchestrator.StateAborted:
			if set.Reason == "" {
				t.Error("aborted without a reason")
			}
		case orchestrator.StateReady:
			checkWhole(t, w, second, set)
		case orchestrator.StateReleased:
		default:
			t.Errorf("set is %s after the restart", set.State)
		}
	}
	if p := w.writer.Power("legacy"); p != orchestrator.Running {
		t.Errorf("legacy is %s", p)
	}
	w.wantNothingLeft()
}

// checkWhole: a set that is ready after a restart still holds what it says, and
// can be released.
func checkWhole(t *testing.T, w *world, e *engine.Engine, set orchestrator.Set) {
	got := 0
	for _, a := range w.arrays() {
		got += len(a.kept())
	}
	if got != len(set.Splits) {
		t.Errorf("a ready set names %d splits; the arrays have %d", len(set.Splits), got)
	}
	if set, err := e.Release(t.Context(), set.ID); err != nil || set.State != orchestrator.StateReleased {
		t.Errorf("release after the restart: %s, %v", set.State, err)
	}
}
