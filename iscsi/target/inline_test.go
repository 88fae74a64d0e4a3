package target

import (
	"bytes"
	"net"
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

// cork holds back what is written until it is drawn.
type cork struct {
	net.Conn
	held []byte
}

func (c *cork) Write(p []byte) (int, error) {
	c.held = append(c.held, p...)
	return len(p), nil
}

// The answers of commands that came together with one that gets stuck do not wait
// for it.
func TestAnswersBeforeAStuckCommand(t *testing.T) {
	l := newLab(t, Options{})
	sick, well := newHeldDisk(1<<20), newDisk(1<<20)
	copy(well.data, bytes.Repeat([]byte("well"), 128))
	l.add(sick)
	l.add(well)
	r := l.login(alice)
	for lun := range 2 {
		r.answer(r.command(lun, pdu.FlagFinal, make([]byte, 16), 0, nil)) // its unit attention
	}
	corked := &cork{Conn: r.nc}
	r.nc = corked
	first := r.command(1, ioRead, cdb10(0x28, 0, 1), 512, nil)
	stuck := r.command(0, ioRead, cdb10(0x28, 0, 1), 512, nil)
	r.nc = corked.Conn
	_, err := r.nc.Write(corked.held)
	r.must(err)
	<-sick.in
	if _, data, _ := r.answer(first); !bytes.Equal(data, well.data[:512]) {
		t.Errorf("the healthy LUN gave %.20q", data)
	}
	sick.hold <- struct{}{}
	if st, _, _ := r.answer(stuck); st != 0 {
		t.Errorf("the stuck one: status %d", st)
	}
}
