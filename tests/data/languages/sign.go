// Messages and signatures as Go makes them: go run sign.go > go.json
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"time"
)

const (
	secret = "languages-secret-with-32-or-so-bytes"
	client = "RLCKb7Ae9kx4DXtXsCWjnDXtggFnM43W"
)

var timestamp int64 = 1667980513000

type fixture struct {
	Kind      string `json:"kind"`
	Secret    string `json:"secret"`
	ClientID  string `json:"client_id"`
	Timestamp string `json:"timestamp"`
	Signed    string `json:"signed"`
	Signature string `json:"signature"`
}

func sign(kind string, signed []byte) fixture {
	at := strconv.FormatInt(timestamp, 10)
	timestamp++
	payload := append([]byte(at+"."+client+"."), signed...)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(base64.RawURLEncoding.EncodeToString(payload)))
	return fixture{kind, secret, client, at, base64.StdEncoding.EncodeToString(signed), hex.EncodeToString(mac.Sum(nil))}
}

func marshal(value any) []byte {
	body, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return body
}

type object = map[string]any

func main() {
	refund := object{
		"tiki_transaction_id": "221115TIKIVIP-235784371-1668488254",
		"transaction_amount":  35000.50,
		"transaction_id":      "8A43B011/0EC9-4AA5",
		"reason":              "Khách hàng đổi ý – hoàn tiền <b>&</b> 💸 \"\u2028\"",
		"request_id":          "r/1",
	}
	ipn := object{
		"reference_transaction_id": "t-1",
		"transaction_amount":       1000.0,
		"transaction_id":           "p-1",
		"status":                   "SUCCESS",
		"partner_banking_method":   nil,
		"not_listed":               object{"rate": 1e21, "ratio": 0.1, "list": []int{}},
	}
	order := object{
		"order": object{
			"id":              "141857488587784201",
			"extra":           "url=https://example.test/đơn?a=1&b=2;x=y",
			"status":          "online_paid",
			"grand_total":     int64(0),
			"reference_id":    "0",
			"tiki_order_id":   "1001059779",
			"tiki_order_code": "308714458",
		},
		"message_id":         "141939182305017886",
		"message_type":       "notification",
		"message_created_at": time.UnixMilli(1667980513123).In(time.FixedZone("", 7*3600)),
	}
	pretty, err := json.MarshalIndent(order, "", "\t")
	if err != nil {
		panic(err)
	}
	query := url.Values{"location": {"Hà Nội"}, "order_id": {"88062110977884170"}, "sign": {"+&/"}}
	fixtures, err := json.MarshalIndent([]fixture{
		sign("refund", marshal(refund)),
		sign("transaction_ipn", marshal(ipn)),
		sign("order_ipn", marshal(order)),
		sign("order_ipn", pretty),
		sign("path", []byte("/order?"+query.Encode())),
		sign("path", []byte("/order?location="+url.PathEscape("Hà Nội"))),
	}, "", " ")
	if err != nil {
		panic(err)
	}
	fmt.Fprintln(os.Stdout, string(fixtures))
}
