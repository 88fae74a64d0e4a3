package target

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/iscsi/pdu"
)

func kv(pairs ...string) (keys []pdu.Key) {
	for i := 0; i < len(pairs); i += 2 {
		keys = append(keys, pdu.Key{Name: pairs[i], Value: pairs[i+1]})
	}
	return keys
}

// Whole logins, request by request: what each answers.
func TestLoginDialogues(t *testing.T) {
	l := newLab(t, Options{})
	l.must(l.s.RemoveTarget(t.Context(), testTarget))
	l.must(l.s.AddTarget(testTarget, "the alias"))
	l.add(newDisk(1 << 20))
	many := make([]string, 0, 2*pdu.MaxKeys)
	for i := range 130 {
		many = append(many, fmt.Sprintf("X-org.example.%s%03d", strings.Repeat("k", 40), i), "v")
	}
	type step struct {
		csg, nsg byte
		transit  bool
		keys     []pdu.Key
		status   loginStatus
		want     []string // key=value that the answer has; -key: that it has not
	}
	for name, steps := range map[string][]step{
		"three stages": {
			{0, 1, true, names(alice, kv("AuthMethod", "CHAP,None")...), 0, []string{"AuthMethod=None", "TargetPortalGroupTag=1"}},
			{1, 3, true, kv("HeaderDigest", "None"), 0, []string{"HeaderDigest=None", "TargetAlias=the alias", "-TargetPortalGroupTag"}},
		},
		"no method asked for":          {{0, 3, true, names(alice), 0, nil}},
		"operational only":             {{1, 3, true, names(alice), 0, []string{"MaxRecvDataSegmentLength=262144"}}},
		"no hurry":                     {{1, 1, false, names(alice), 0, nil}, {1, 1, false, nil, 0, nil}, {1, 3, true, nil, 0, nil}},
		"names again":                  {{0, 1, true, names(alice), 0, nil}, {1, 3, true, names(alice), 0, nil}},
		"another name":                 {{0, 1, true, names(alice), 0, nil}, {1, 3, true, names(bob), statusInitiatorError, nil}},
		"name late":                    {{1, 1, false, kv("HeaderDigest", "None"), statusMissing, nil}},
		"session type late":            {{0, 1, true, names(alice), 0, nil}, {1, 3, true, kv("SessionType", "Normal"), statusInitiatorError, nil}},
		"two names at once":            {{1, 3, true, names(alice, kv("InitiatorName", string(bob))...), statusInitiatorError, nil}},
		"a key in two requests":        {{1, 1, false, names(alice, kv("MaxBurstLength", "1024")...), 0, nil}, {1, 3, true, kv("MaxBurstLength", "1024"), statusInitiatorError, nil}},
		"an answer in two requests":    {{1, 1, false, names(alice, kv("MaxConnections", "Reject")...), 0, []string{"-MaxConnections"}}, {1, 3, true, kv("MaxConnections", "1"), statusInitiatorError, nil}},
		"first burst first":            {{1, 3, true, names(alice, kv("FirstBurstLength", "65536", "MaxBurstLength", "4096")...), 0, []string{"FirstBurstLength=4096", "MaxBurstLength=4096"}}},
		"first burst alone":            {{1, 3, true, names(alice, kv("FirstBurstLength", "16777215")...), 0, []string{"FirstBurstLength=65536"}}},
		"declared, not answered":       {{1, 3, true, names(alice, kv("InitiatorAlias", "me", "MaxRecvDataSegmentLength", "4096")...), 0, []string{"-InitiatorAlias", "MaxRecvDataSegmentLength=262144"}}},
		"declared out of range":        {{1, 3, true, names(alice, kv("MaxRecvDataSegmentLength", "100")...), statusInitiatorError, nil}},
		"nobody's keys":                {{1, 3, true, names(alice, kv("X-org.example", "1", "Y", "2")...), 0, []string{"X-org.example=NotUnderstood", "Y=NotUnderstood"}}},
		"more answers than fit":        {{1, 3, true, names(alice, kv(many...)...), statusInitiatorError, nil}},
		"stage skipped":                {{0, 1, true, names(alice), 0, nil}, {0, 1, true, nil, statusInitiatorError, nil}},
		"stage back":                   {{1, 1, false, names(alice), 0, nil}, {0, 1, true, nil, statusInitiatorError, nil}},
		"transition to the same":       {{1, 1, true, names(alice), statusInitiatorError, nil}},
		"transition to nowhere":        {{0, 2, true, names(alice), statusInitiatorError, nil}},
		"from nowhere":                 {{2, 3, true, names(alice), statusInitiatorError, nil}},
		"full feature phase from it":   {{3, 3, true, names(alice), statusInitiatorError, nil}},
		"discovery: irrelevant":        {{1, 3, true, kv("InitiatorName", string(alice), "SessionType", "Discovery", "MaxBurstLength", "512", "InitialR2T", "No", "ImmediateData", "No", "MaxConnections", "2", "DataPDUInOrder", "No"), 0, []string{"MaxBurstLength=Irrelevant", "InitialR2T=Irrelevant", "ImmediateData=Irrelevant", "MaxConnections=Irrelevant", "DataPDUInOrder=Irrelevant", "-TargetPortalGroupTag", "-TargetAlias"}}},
		"authentication out of season": {{1, 3, true, names(alice, kv("CHAP_A", "5")...), statusInitiatorError, nil}},
	} {
		r := l.dial()
		for i, s := range steps {
			st, out, h := r.loginPDU(s.csg, s.nsg, s.transit, s.keys...)
			if st != uint16(s.status) {
				t.Errorf("%s, request %d: status %04x, want %04x", name, i+1, st, s.status)
				break
			}
			if last := i == len(steps)-1 && st == 0; last != (h.TSIH() != 0) {
				t.Errorf("%s, request %d: TSIH %d", name, i+1, h.TSIH())
			}
			if st == 0 && s.transit != h.Final() {
				t.Errorf("%s, request %d: T %t", name, i+1, h.Final())
			}
			for _, w := range s.want {
				k, v, _ := strings.Cut(w, "=")
				if no, is := strings.CutPrefix(k, "-"); is {
					if v, has := out[no]; has {
						t.Errorf("%s, request %d: %s=%s, which nobody asked for", name, i+1, no, v)
					}
				} else if out[k] != v {
					t.Errorf("%s, request %d: %s=%q, want %q", name, i+1, k, out[k], v)
				}
			}
		}
		r.nc.Close()
	}
}

// text sends a Text Request and returns the keys of the answer.
func (r *raw) text(keys ...pdu.Key) map[string]string {
	r.t.Helper()
	var h pdu.Header
	h.Set(pdu.OpText|0x40, pdu.FlagFinal)
	h.SetITT(8000)
	h.SetTTT(pdu.NoTag)
	binary.BigEndian.PutUint32(h[24:], r.cmdSN)
	r.must(r.send(&h, pdu.AppendText(nil, keys...)))
	a, data, err := r.recv()
	r.must(err)
	if a.Opcode() != pdu.OpTextResp {
		r.t.Fatalf("answer to text: %s", &a)
	}
	ks, err := pdu.ParseText(data)
	r.must(err)
	out := map[string]string{}
	for _, k := range ks {
		out[k.Name] = k.Value
	}
	return out
}

// In full feature phase only the length of data segments can be declared anew.
func TestRenegotiation(t *testing.T) {
	l := newLab(t, Options{})
	l.add(newDisk(1 << 20))
	r := l.login(alice)
	r.ready(0)
	out := r.text(kv("MaxBurstLength", "512", "HeaderDigest", "CRC32C", "X-org.example", "1", "MaxRecvDataSegmentLength", "1024")...)
	for k, v := range map[string]string{"MaxBurstLength": rejected, "HeaderDigest": rejected, "X-org.example": notUnderstood, "MaxRecvDataSegmentLength": ""} {
		if out[k] != v {
			t.Errorf("%s=%q, want %q", k, out[k], v)
		}
	}
	itt := r.command(0, ioRead, cdb10(0x28, 0, 16), 8192, nil)
	for n := 0; n < 8192; {
		h, data, err := r.recv()
		r.must(err)
		if h.ITT() != itt || len(data) > 1024 {
			t.Fatalf("%s", &h)
		}
		n += len(data)
	}
	// The target of the session is told, others are not; All is for discovery.
	l.must(l.s.AddTarget("iqn.2026-01.test:other", ""))
	if out := r.text(kv("SendTargets", "")...); out["TargetName"] != string(testTarget) {
		t.Errorf("%v", out)
	}
	if out := r.text(kv("SendTargets", "iqn.2026-01.test:other")...); out["TargetName"] != "" {
		t.Errorf("%v", out)
	}
	if out := r.text(kv("SendTargets", "All")...); out["SendTargets"] != rejected {
		t.Errorf("%v", out)
	}
}

// Residuals say how much less or more the command wanted than was announced.
func TestResiduals(t *testing.T) {
	l := newLab(t, Options{})
	l.add(newDisk(1 << 20))
	r := l.login(alice)
	r.ready(0)
	for _, c := range []struct {
		flags byte
		cdb   []byte
		edtl  uint32
		flag  byte
		n     uint32
	}{
		{ioRead, cdb10(0x28, 0, 2), 1024, 0, 0},
		{ioRead, cdb10(0x28, 0, 1), 1024, pdu.FlagUnderflow, 512},
		{ioRead, cdb10(0x28, 0, 4), 1024, pdu.FlagOverflow, 1024},
		{ioWrite, cdb10(0x2a, 0, 1), 1024, pdu.FlagUnderflow, 512},
		{ioWrite, cdb10(0x2a, 0, 4), 1024, pdu.FlagOverflow, 1024},
		{ioRead, cdb10(0x28, 0xffffff, 1), 512, pdu.FlagUnderflow, 512}, // beyond the end: nothing came
		{pdu.FlagFinal, make([]byte, 16), 0, 0, 0},
	} {
		var imm []byte
		if c.flags == ioWrite {
			imm = make([]byte, c.edtl)
		}
		itt := r.command(0, c.flags, c.cdb, c.edtl, imm)
		for {
			h, _, err := r.recv()
			r.must(err)
			if h.ITT() != itt || h.Opcode() == pdu.OpDataIn && h.Flags()&pdu.FlagStatus == 0 {
				continue
			}
			got := h.Flags() & (pdu.FlagOverflow | pdu.FlagUnderflow)
			if got != c.flag || h.Residual() != c.n {
				t.Errorf("%x of %d: flags %02x residual %d, want %02x %d", c.cdb[:10], c.edtl, got, h.Residual(), c.flag, c.n)
			}
			break
		}
	}
}

// StatSN counts what has a status; DataSN counts within a command; the window opens
// as commands end.
func TestSequenceNumbers(t *testing.T) {
	l := newLab(t, Options{QueueDepth: 4})
	sick := newHeldDisk(1 << 20)
	l.add(sick)
	r := l.login(alice, kv("MaxRecvDataSegmentLength", "512")...)
	for range 3 {
		r.answer(r.command(0, pdu.FlagFinal, make([]byte, 16), 0, nil))
	}
	window := func() uint32 { // that is open
		r.t.Helper()
		var h pdu.Header
		h.Set(pdu.OpNopOut|0x40, pdu.FlagFinal)
		h.SetITT(6000)
		h.SetTTT(pdu.NoTag)
		binary.BigEndian.PutUint32(h[24:], r.cmdSN)
		r.must(r.send(&h, nil))
		for {
			a, _, err := r.recv()
			r.must(err)
			if exp, last := a.Window(); a.Opcode() == pdu.OpNopIn {
				if exp != r.cmdSN {
					t.Errorf("ExpCmdSN %d, want %d", exp, r.cmdSN)
				}
				return last - exp + 1
			}
		}
	}
	if w := window(); w != 8 {
		t.Errorf("window of %d, want 8", w)
	}
	var itts []uint32
	for range 4 {
		itts = append(itts, r.command(0, ioRead, cdb10(0x28, 0, 4), 2048, nil))
	}
	for range 4 {
		<-sick.in
	}
	if w := window(); w != 4 {
		t.Errorf("window of %d with 4 commands under way, want 4", w)
	}
	close(sick.hold)
	stat, data := uint32(0), map[uint32]uint32{}
	for left := len(itts); left > 0; {
		h, _, err := r.recv()
		r.must(err)
		if h.DataSN() != data[h.ITT()] {
			t.Errorf("DataSN %d, want %d", h.DataSN(), data[h.ITT()])
		}
		data[h.ITT()]++
		if h.Flags()&pdu.FlagStatus == 0 {
			continue
		}
		if left--; stat != 0 && h.StatSN() != stat+1 {
			t.Errorf("StatSN %d after %d", h.StatSN(), stat)
		}
		stat = h.StatSN()
	}
	if w := window(); w != 8 {
		t.Errorf("window of %d at the end, want 8", w)
	}
}
