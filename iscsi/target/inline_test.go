package target

import (
	"bytes"
	"testing"

	"github.com/cleave-san/cleave/iscsi/pdu"
)

// A command that is stuck in its device, in the reader's own goroutine, holds up
// neither pings nor other LUNs nor aborts; nor is it lost.
func TestStuckReaderIsRelieved(t *testing.T) {
	l := newLab(t, Options{})
	sick, well := newHeldDisk(1<<20), newDisk(1<<20)
	copy(sick.data, bytes.Repeat([]byte("sick"), 128))
	copy(well.data, bytes.Repeat([]byte("well"), 128))
	l.add(sick)
	l.add(well)
	r := l.login(alice)
	for lun := range 2 {
		r.answer(r.command(lun, pdu.FlagFinal, make([]byte, 16), 0, nil)) // its unit attention
	}
	for round := range 3 {
		stuck := r.command(0, ioRead, cdb10(0x28, 0, 1), 512, nil)
		<-sick.in
		r.ping()
		if _, data, _ := r.answer(r.command(1, ioRead, cdb10(0x28, 0, 1), 512, nil)); !bytes.Equal(data, well.data[:512]) {
			t.Fatalf("round %d: the healthy LUN gave %.20q", round, data)
		}
		sick.hold <- struct{}{}
		if _, data, _ := r.answer(stuck); !bytes.Equal(data, sick.data[:512]) {
			t.Fatalf("round %d: the sick LUN gave %.20q", round, data)
		}
	}
	if turn := l.nexus(alice, 0).ss.conn.turn.Load(); turn < 2 {
		t.Errorf("turn %d: the reader performed nothing", turn)
	}
}
