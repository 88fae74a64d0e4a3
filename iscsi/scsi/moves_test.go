package scsi

import "testing"

// Only a READ or WRITE that nobody asks to be stable moves data and does nothing
// else.
func TestOnlyMoves(t *testing.T) {
	b := newBench(t, &thin{disk{data: make([]byte, 1<<20)}})
	fua := func(cdb []byte) []byte { cdb[1] |= 8; return cdb }
	check := func(wce bool) {
		b.u.wce.Store(wce)
		for _, row := range []struct {
			name string
			cdb  []byte
			want bool
		}{
			{"READ(6)", []byte{0x08, 0, 0, 0, 8, 0}, true},
			{"READ(10)", cdb10(0x28, 8, 8), true},
			{"READ(10) with FUA", fua(cdb10(0x28, 8, 8)), false},
			{"READ(10) of too much", cdb10(0x28, 8, 9), false},
			{"WRITE(10)", cdb10(0x2a, 8, 8), wce},
			{"WRITE(10) with FUA", fua(cdb10(0x2a, 8, 8)), false},
			{"WRITE AND VERIFY(10)", cdb10(0x2e, 8, 8), false},
			{"VERIFY(10)", cdb10(0x2f, 8, 8), false},
			{"SYNCHRONIZE CACHE(10)", cdb10(0x35, 0, 0), false},
			{"COMPARE AND WRITE", []byte{0x89, 13: 1, 15: 0}, false},
		} {
			var c Command
			copy(c.CDB[:], row.cdb)
			c.Limit, c.Read, c.Write = 4608, true, true
			b.n.Begin(&c)
			if got := b.n.OnlyMoves(&c, 4096); got != row.want {
				t.Errorf("write cache %t, %s: %t, want %t", wce, row.name, got, row.want)
			}
		}
	}
	check(true)
	check(false)
	if b.n.OnlyMoves(&Command{}, 4096) {
		t.Error("a command that was not looked at")
	}
}
