<?php
// A small legacy backend: it takes whatever it is asked for, and writes it into its book. It knows
// nothing of signatures, and it pays twice when it is asked twice: that is what the gate is for.
//
//   POST /ipn, /refund   applied, each time
//   GET /book            all that was applied, in its order
//   GET /health          200
//
// A refund whose reason is "hang" takes 20 s, and one with "broken" is paid and then answered with a
// page of its own: ways to see a refund held.
//
//   BOOK=/tmp/book.json php -S 127.0.0.1:9000 index.php

declare(strict_types=1);

$book = getenv('BOOK') ?: sys_get_temp_dir() . '/book.json';

function answer(int $status, $body): void
{
    http_response_code($status);
    header('Content-Type: application/json');
    echo json_encode($body, JSON_UNESCAPED_SLASHES | JSON_UNESCAPED_UNICODE), "\n";
}

// Runs $change on the book, one request at a time.
function with_book(string $path, callable $change): array
{
    $file = fopen($path, 'c+');
    flock($file, LOCK_EX);
    $entries = json_decode(stream_get_contents($file) ?: '[]', true);
    $changed = $change($entries);
    if ($changed !== $entries) {
        ftruncate($file, 0);
        rewind($file);
        fwrite($file, json_encode($changed, JSON_UNESCAPED_SLASHES | JSON_UNESCAPED_UNICODE));
        fflush($file);
    }
    flock($file, LOCK_UN);
    fclose($file);
    return $changed;
}

$path = parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH);
$call = $_SERVER['REQUEST_METHOD'] . ' ' . $path;

if ($call === 'GET /health') {
    answer(200, ['status' => 'ok']);
} elseif ($call === 'GET /book') {
    answer(200, with_book($book, fn (array $entries) => $entries));
} elseif ($call === 'POST /ipn' || $call === 'POST /refund') {
    $message = json_decode(file_get_contents('php://input'), true);
    $reason = $message['reason'] ?? '';
    with_book($book, function (array $entries) use ($path, $message): array {
        $entries[] = [
            'what' => ltrim($path, '/'),
            'key' => $_SERVER['HTTP_IDEMPOTENCY_KEY'] ?? null,
            'attempt' => $_SERVER['HTTP_X_TIKIGATE_ATTEMPT'] ?? null,
            'at' => gmdate('c'),
            'message' => $message,
        ];
        return $entries;
    });
    if ($reason === 'hang') {
        sleep(20);
    }
    if ($reason === 'broken') {
        http_response_code(500);
        echo "<h1>Fatal error</h1>\n";
    } else {
        answer(200, ['data' => ['status' => 'success']]);
    }
} else {
    answer(404, ['data' => null, 'error' => ['code' => 'not_found', 'message' => 'no such page']]);
}
