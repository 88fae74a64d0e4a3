package target

import (
	"strconv"
	"strings"

	"github.com/cleave-san/cleave/iscsi/pdu"
)

// params is what a login has agreed on (RFC 7143 section 13).
type params struct {
	headerDigest  bool
	dataDigest    bool
	initialR2T    bool
	immediateData bool
	sendMax       uint32 // the initiator's MaxRecvDataSegmentLength
	maxBurst      uint32
	firstBurst    uint32
	maxR2T        uint32
	cid           uint16
}

// defaultParams holds where nothing is negotiated.
func defaultParams() params {
	return params{initialR2T: true, immediateData: true, sendMax: 8192,
		maxBurst: 262144, firstBurst: 65536, maxR2T: 1}
}

// What this target brings to the negotiation.
const (
	ourRecvMax    = 256 << 10 // MaxRecvDataSegmentLength
	ourMaxBurst   = 1 << 20
	ourFirstBurst = 64 << 10
	maxLength     = 1<<24 - 1
)

// Constant values of a text negotiation (RFC 7143 section 6.2).
const (
	notUnderstood = "NotUnderstood"
	irrelevant    = "Irrelevant"
	rejected      = "Reject"
)

// isConstant reports whether a value is an answer and no offer.
func isConstant(v string) bool { return v == notUnderstood || v == irrelevant || v == rejected }

// operational is the table of operational keys: each takes the initiator's offer
// and returns the answer, "" where the key is declared and not
// negotiated. discovery makes some keys irrelevant.
func (p *params) operational(name, value string, discovery bool) string {
	switch name {
	case "HeaderDigest":
		return digest(value, &p.headerDigest)
	case "DataDigest":
		return digest(value, &p.dataDigest)
	case "MaxRecvDataSegmentLength":
		n, ok := number(value, 512, maxLength)
		if !ok {
			return rejected
		}
		p.sendMax = n
		return ""
	case "MaxConnections":
		return lowest(value, 1, 65535, 1, nil, discovery)
	case "InitialR2T":
		return either(value, false, &p.initialR2T, discovery)
	case "ImmediateData":
		return both(value, true, &p.immediateData, discovery)
	case "MaxBurstLength":
		return lowest(value, 512, maxLength, ourMaxBurst, &p.maxBurst, discovery)
	case "FirstBurstLength":
		return lowest(value, 512, maxLength, min(ourFirstBurst, p.maxBurst), &p.firstBurst, discovery)
	case "MaxOutstandingR2T":
		return lowest(value, 1, 65535, maxR2T, &p.maxR2T, discovery)
	case "DefaultTime2Wait": // the higher; ours is 0
		return lowest(value, 0, 3600, 3600, nil, false)
	case "DefaultTime2Retain":
		return lowest(value, 0, 3600, 0, nil, false)
	case "ErrorRecoveryLevel":
		return lowest(value, 0, 2, 0, nil, false)
	case "DataPDUInOrder", "DataSequenceInOrder":
		return either(value, true, nil, discovery)
	case "IFMarker", "OFMarker": // obsolete: RFC 7143 section 13.25 lets us say No
		return both(value, false, nil, false)
	case "IFMarkInt", "OFMarkInt":
		return rejected
	case "TaskReporting":
		if strings.Contains(","+value+",", ",RFC3720,") {
			return "RFC3720"
		}
		return rejected
	case "iSCSIProtocolLevel":
		return lowest(value, 0, 31, 1, nil, false)
	case "InitiatorAlias":
		return ""
	}
	return notUnderstood
}

func number(v string, low, high uint64) (uint32, bool) {
	n, err := pdu.ParseNumber(v)
	if err != nil || n < low || n > high {
		return 0, false
	}
	return uint32(n), true
}

// lowest is the numerical function minimum.
func lowest(v string, low, high uint64, ours uint32, into *uint32, discovery bool) string {
	if discovery {
		return irrelevant
	}
	n, ok := number(v, low, high)
	if !ok {
		return rejected
	}
	n = min(n, ours)
	if into != nil {
		*into = n
	}
	return strconv.FormatUint(uint64(n), 10)
}

// either is the boolean function OR, both is AND.
func either(v string, ours bool, into *bool, discovery bool) string {
	return boolean(v, func(theirs bool) bool { return theirs || ours }, into, discovery)
}

func both(v string, ours bool, into *bool, discovery bool) string {
	return boolean(v, func(theirs bool) bool { return theirs && ours }, into, discovery)
}

func boolean(v string, f func(bool) bool, into *bool, discovery bool) string {
	switch {
	case discovery:
		return irrelevant
	case v != "Yes" && v != "No":
		return rejected
	}
	r := f(v == "Yes")
	if into != nil {
		*into = r
	}
	if r {
		return "Yes"
	}
	return "No"
}

// digest picks the first of a list that is spoken here.
func digest(list string, into *bool) string {
	for v := range strings.SplitSeq(list, ",") {
		if v == "CRC32C" || v == "None" {
			*into = v == "CRC32C"
			return v
		}
	}
	return rejected
}
