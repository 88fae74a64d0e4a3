package scsi

import (
	"testing"
)

// flat is a Sink without allocations.
type flat struct{ b []byte }

func (s *flat) Get(n int) ([]byte, error) { return s.b[:n], nil }
func (s *flat) Put([]byte) error          { return nil }

// Nothing is allocated per command in steady state: reads, writes, and what hosts
// send all the time, with and without a reservation.
func TestNoAllocations(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	b := newBench(t, &thin{disk{data: make([]byte, 1<<20)}})
	b.u.opt.Store = &memoryStore{}
	sink := &flat{make([]byte, Chunk)}
	out := make([]byte, 64<<10)
	cdb16 := func(op byte, n byte) []byte { return []byte{op, 13: n, 15: 0} }
	check := func(state string) {
		for name, q := range map[string]struct {
			cdb   []byte
			limit int64
			write bool
		}{
			"READ(10)":              {cdb10(0x28, 8, 8), 4096, false},
			"READ(16) of 64 KiB":    {cdb16(0x88, 128), 65536, false},
			"WRITE(10)":             {cdb10(0x2a, 8, 8), 4096, true},
			"WRITE(16) of 64 KiB":   {cdb16(0x8a, 128), 65536, true},
			"COMPARE AND WRITE":     {[]byte{0x89, 13: 1, 15: 0}, 1024, true},
			"ORWRITE(16)":           {cdb16(0x8b, 8), 4096, true},
			"WRITE AND VERIFY(10)":  {cdb10(0x2e, 8, 8), 4096, true},
			"WRITE SAME(16)":        {cdb16(0x93, 8), 512, true},
			"SYNCHRONIZE CACHE(10)": {cdb10(0x35, 0, 0), 0, false},
			"TEST UNIT READY":       {make([]byte, 6), 0, false},
		} {
			c := &Command{}
			n := testing.AllocsPerRun(100, func() {
				c.Reset()
				copy(c.CDB[:], q.cdb)
				c.Limit, c.Read, c.Write, c.In = q.limit, !q.write && q.limit > 0, q.write, sink
				need, done := b.n.Begin(c)
				if !done {
					c.Out = out[:need]
					b.n.Run(c)
				}
				if c.Status != Good {
					t.Fatalf("%s: status %#x sense %x", name, c.Status, c.Sense[:c.SenseLen])
				}
			})
			if n != 0 {
				t.Errorf("%s, %s: %v allocations", name, state, n)
			}
		}
	}
	check("nothing reserved")
	b.good(prOut(b.n, prRegister, 0, 0, 1, flagAPTPL), prOut(b.n, prReserve, exclusiveAccessRO, 1, 0, 0))
	check("reserved")
}
