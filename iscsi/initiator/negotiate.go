package initiator

import (
	"fmt"
	"strings"

	"github.com/cleave-san/cleave/iscsi/pdu"
)

// params is what a login has agreed on (RFC 7143 section 13).
type params struct {
	headerDigest  bool
	dataDigest    bool
	initialR2T    bool
	immediateData bool
	sendMax       uint32 // the target's MaxRecvDataSegmentLength
	maxBurst      uint32
	firstBurst    uint32
	time2Wait     uint32 // seconds
}

// defaultParams holds where nothing is negotiated.
func defaultParams() params {
	return params{initialR2T: true, immediateData: true, sendMax: 8192, maxBurst: 262144, firstBurst: 65536, time2Wait: 2}
}

// What this initiator brings to the negotiation.
const (
	ourRecvMax    = 256 << 10 // MaxRecvDataSegmentLength, in bytes
	ourMaxBurst   = 1 << 20
	ourFirstBurst = 256 << 10
	ourMaxR2T     = 8
	maxLength     = 1<<24 - 1
)

// offer is the keys of the operational stage.
func (o *Options) offer(discovery bool) []pdu.Key {
	keys := []pdu.Key{
		{Name: "HeaderDigest", Value: o.HeaderDigest.offer()},
		{Name: "DataDigest", Value: o.DataDigest.offer()},
		{Name: "MaxRecvDataSegmentLength", Value: fmt.Sprint(ourRecvMax)},
		{Name: "DefaultTime2Wait", Value: "0"},
		{Name: "DefaultTime2Retain", Value: "0"},
		{Name: "ErrorRecoveryLevel", Value: "0"},
	}
	if discovery {
		return keys
	}
	return append(keys,
		pdu.Key{Name: "InitialR2T", Value: "No"},
		pdu.Key{Name: "ImmediateData", Value: "Yes"},
		pdu.Key{Name: "MaxBurstLength", Value: fmt.Sprint(ourMaxBurst)},
		pdu.Key{Name: "FirstBurstLength", Value: fmt.Sprint(ourFirstBurst)},
		pdu.Key{Name: "MaxOutstandingR2T", Value: fmt.Sprint(ourMaxR2T)},
		pdu.Key{Name: "MaxConnections", Value: "1"},
		pdu.Key{Name: "DataPDUInOrder", Value: "Yes"},
		pdu.Key{Name: "DataSequenceInOrder", Value: "Yes"})
}

// answer takes one key of the target: the result of what was offered, or a
// declaration of its own. An answer that is not a result of the offer is an
// error. It returns what to say in reply to a key that the target offers by itself.
func (p *params) answer(o *Options, k pdu.Key) (reply string, err error) {
	number := func(low, high uint32, into *uint32) error {
		n, err := pdu.ParseNumber(k.Value)
		if err != nil || n < uint64(low) || n > uint64(high) {
			return protocolError("login: %s=%.40q, allowed is %d to %d", k.Name, k.Value, low, high)
		}
		if into != nil {
			*into = uint32(n)
		}
		return nil
	}
	boolean := func(into *bool) error {
		if k.Value != "Yes" && k.Value != "No" {
			return protocolError("login: %s=%.40q", k.Name, k.Value)
		}
		*into = k.Value == "Yes"
		return nil
	}
	if v := k.Value; v == "Irrelevant" || v == "Reject" || v == "NotUnderstood" {
		if k.Name == "HeaderDigest" && o.HeaderDigest == DigestRequired || k.Name == "DataDigest" && o.DataDigest == DigestRequired {
			return "", fmt.Errorf("login: the target does not agree to %s=CRC32C", k.Name)
		}
		return "", nil
	}
	switch k.Name {
	case "HeaderDigest":
		return "", digest(k, o.HeaderDigest, &p.headerDigest)
	case "DataDigest":
		return "", digest(k, o.DataDigest, &p.dataDigest)
	case "MaxRecvDataSegmentLength":
		return "", number(512, maxLength, &p.sendMax)
	case "InitialR2T":
		return "", boolean(&p.initialR2T)
	case "ImmediateData":
		return "", boolean(&p.immediateData)
	case "MaxBurstLength":
		return "", number(512, ourMaxBurst, &p.maxBurst)
	case "FirstBurstLength":
		return "", number(512, ourFirstBurst, &p.firstBurst)
	case "DefaultTime2Wait":
		return "", number(0, 3600, &p.time2Wait)
	case "DefaultTime2Retain", "ErrorRecoveryLevel":
		return "", number(0, 0, nil)
	case "MaxOutstandingR2T":
		return "", number(1, ourMaxR2T, nil)
	case "MaxConnections":
		return "", number(1, 1, nil)
	case "DataPDUInOrder", "DataSequenceInOrder":
		if k.Value != "Yes" {
			return "", protocolError("login: %s=%.40q, asked was Yes", k.Name, k.Value)
		}
		return "", nil
	case "TargetAlias", "TargetPortalGroupTag", "TargetAddress", "TargetName", "AuthMethod", "MaxOutstandingUnexpectedPDUs":
		return "", nil
	case "IFMarker", "OFMarker":
		return "No", nil
	case "IFMarkInt", "OFMarkInt":
		return "Irrelevant", nil
	}
	return "NotUnderstood", nil
}

// digest takes the target's choice.
func digest(k pdu.Key, want Digest, into *bool) error {
	if !strings.Contains(","+want.offer()+",", ","+k.Value+",") {
		return protocolError("login: %s=%.40q, offered was %s", k.Name, k.Value, want.offer())
	}
	*into = k.Value == "CRC32C"
	return nil
}

// settle is called when the negotiation is over. RFC 7143 section 13.14 forbids a
// first burst longer than any; some targets leave it at its default.
func (p *params) settle() { p.firstBurst = min(p.firstBurst, p.maxBurst) }
